"""Which MQTT to speak: 5, or 3.1.1 where the broker does not take 5. Pure: told what happens.

A broker that says that it does not speak MQTT 5 is believed as long as it is there. Some hang up instead, or say
nothing (amqtt), but so does one that is just starting; so that holds for one connection, and the next one begins with
MQTT 5 again.
"""

from __future__ import annotations

import math

from edge_daemon.choices import Protocol

V5, V311 = 5, 4
NAMES = {V5: "5", V311: "3.1.1"}
PATIENCE_S = 5.0
"""A broker that has not answered within so long perhaps does not understand us."""


class Dialect:
    """What is known of one broker."""

    def __init__(self, wanted: Protocol) -> None:
        self._wanted = wanted
        self.version = V311 if wanted == "3.1.1" else V5
        """For the next connection."""
        self._said = False

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer before another version is tried."""
        return PATIENCE_S if self._wanted == "auto" and self.version == V5 else math.inf

    def refused(self) -> bool:
        """The broker does not speak this version; whether another one is worth an attempt now."""
        self._said = True
        return self._older()

    def unanswered(self) -> bool:
        """The broker hung up at our first words, or said nothing; whether another version is worth an attempt now."""
        if self._older():
            return True
        self.lost()
        return False

    def lost(self) -> None:
        """A connection ended."""
        if self._wanted == "auto" and not self._said:
            self.version = V5

    def away(self) -> None:
        """The broker cannot be reached: it may come back as another one."""
        self._said = False
        self.lost()

    def _older(self) -> bool:
        older = self._wanted == "auto" and self.version == V5
        if older:
            self.version = V311
        return older
