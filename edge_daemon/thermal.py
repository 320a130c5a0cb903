"""How much of the time is spent captioning, so that the board stays cool: from temperature and throttle bits. Pure.

A board that gets hot is slowed down by its firmware, which costs more than pauses do and says nothing; so there are
pauses before that, and they are told. Readings come from sensors.py, times are passed in.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

SLOW_DOWN_AT_C = 70.0
"""From here on there are pauses: far enough below the limit that the board finds its balance before it."""
LIMIT_AT_C = 80.0
"""From 80 °C on the Arm cores of every Raspberry Pi are slowed down step by step, from 85 °C on the GPU as well
(raspberrypi.com/documentation, "Frequency management and thermal control")."""
LOWEST_DUTY = 0.2
"""At the limit and above. A board that is still too hot with so little to do is heated by something else."""
THROTTLED_DUTY = 0.5
"""While the firmware slows the board down, or the voltage is too low: half the work, at most."""
HYSTERESIS_C = 5.0
"""A pause becomes shorter only when it has cooled so far; the Raspberry Pi 5 controls its fan with the same."""
RISE_PER_S = 0.02
"""How fast the duty may rise: from the lowest to full in 40 s. It falls at once."""
HOLD_S = 60.0
"""What the firmware reported counts for so long: its bits come and go every few seconds when power is weak."""
LONGEST_PAUSE_S = 300.0
BITS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""Bits 0 to 3 of `vcgencmd get_throttled`: now. Bits 16 to 19: the same, since the board was switched on."""
UNDER_VOLTAGE, FREQUENCY_CAPPED, THROTTLED, SOFT_LIMIT = BITS
IN_WORDS = {
    UNDER_VOLTAGE: "too little voltage",
    FREQUENCY_CAPPED: "a capped processor clock",
    THROTTLED: "a slowed-down processor",
    SOFT_LIMIT: "a temperature above the soft limit",
}


@dataclass(frozen=True)
class Reading:
    """What the board says of itself; None where nothing can be read."""

    temperature_c: float | None = None
    throttled: int | None = None
    """As `vcgencmd get_throttled` has it."""
    under_voltage: bool | None = None
    source: str = ""
    """Where it was read, for people."""


@dataclass(frozen=True)
class News:
    """A change of state, once, for the journal."""

    level: int
    """Of `logging`."""
    words: str


class DutyCycle:
    """The share of the time that may be spent captioning, 1.0 for all of it, and the pauses that follow from it."""

    def __init__(self, slow_down_at_c: float = SLOW_DOWN_AT_C, limit_at_c: float = LIMIT_AT_C) -> None:
        self.duty = 1.0
        self._slow_down_at_c = slow_down_at_c
        self._limit_at_c = limit_at_c
        self._reading = Reading()
        self._updated_s = math.inf
        self._seen_s: dict[str, float] = {}
        self._active: list[str] = []
        self._since_boot: set[str] = set()
        self._pausing = False
        self._taken_s = 0.0
        self._ended_s = -math.inf

    def update(self, reading: Reading, now_s: float) -> list[News]:
        """Take a new reading, every few seconds. Returns what has changed and is worth a line."""
        passed_s = max(0.0, now_s - self._updated_s)
        self._reading, self._updated_s = reading, now_s
        news = self._note_bits(reading, now_s)
        most = THROTTLED_DUTY if self._active else 1.0
        ceiling, floor = (min(most, self._allowed(reading.temperature_c, cooler_c)) for cooler_c in (0.0, HYSTERESIS_C))
        if self.duty > ceiling:
            self.duty = ceiling
        elif self.duty < floor:
            self.duty = min(floor, self.duty + RISE_PER_S * passed_s)
        return news + self._note_pauses()

    def worked(self, start_s: float, end_s: float) -> None:
        """A picture was in work."""
        self._taken_s, self._ended_s = end_s - start_s, end_s

    def pause_s(self, taken_s: float) -> float:
        """The pause after a picture that took so long."""
        return min(LONGEST_PAUSE_S, taken_s * (1 / self.duty - 1))

    def rest_s(self, now_s: float) -> float:
        """What is left of the pause after the last picture, with the duty as it is now; 0.0 when it is over."""
        return max(0.0, self._ended_s + self.pause_s(self._taken_s) - now_s)

    def document(self) -> dict[str, Any]:
        """For health; null is what cannot be read here."""
        reading = self._reading
        return {
            "temperature_c": None if reading.temperature_c is None else round(reading.temperature_c, 1),
            "duty": round(self.duty, 2),
            "pause_s": round(self.pause_s(self._taken_s), 1),
            "throttled": None
            if reading.throttled is None
            else [name for name in self._active if name != UNDER_VOLTAGE],
            "under_voltage": None if reading.under_voltage is None else UNDER_VOLTAGE in self._active,
            "since_boot": [name for name in BITS if name in self._since_boot],
            "source": reading.source,
        }

    def _allowed(self, temperature_c: float | None, cooler_c: float) -> float:
        """The duty at this temperature, by a scale that is moved `cooler_c` down."""
        if temperature_c is None:
            return 1.0
        share = (temperature_c + cooler_c - self._slow_down_at_c) / (self._limit_at_c - self._slow_down_at_c)
        return LOWEST_DUTY + (1.0 - LOWEST_DUTY) * (1.0 - min(1.0, max(0.0, share)))

    def _note_bits(self, reading: Reading, now_s: float) -> list[News]:
        bits = reading.throttled or 0
        now = {name for number, name in enumerate(BITS) if bits >> number & 1}
        if reading.under_voltage:
            now.add(UNDER_VOLTAGE)
        self._seen_s.update(dict.fromkeys(now, now_s))
        before = self._active
        self._active = [name for name in BITS if now_s - self._seen_s.get(name, -math.inf) < HOLD_S]
        occurred = {name for number, name in enumerate(BITS) if bits >> 16 + number & 1} - now - self._since_boot
        self._since_boot |= now | occurred
        news = _changes(before, self._active)
        if occurred:
            news.append(News(logging.WARNING, f"since it was switched on, the board had: {_listed(occurred)}"))
        return news

    def _note_pauses(self) -> list[News]:
        before, self._pausing = self._pausing, self.duty < 1.0
        if self._pausing == before:
            return []
        temperature_c = self._reading.temperature_c
        at = "" if temperature_c is None else f" at {temperature_c:.0f} °C"
        if not self._pausing:
            return [News(logging.INFO, f"the board has cooled down{at}: no more pauses between captions")]
        if self._active:  # told already
            return []
        why = f"so that it stays below the {self._limit_at_c:.0f} °C at which it would be slowed down"
        return [News(logging.WARNING, f"the board is warm{at}: captions pause between pictures, {why}")]


def _changes(before: list[str], now: list[str]) -> list[News]:
    news = []
    if UNDER_VOLTAGE in now and UNDER_VOLTAGE not in before:
        words = (
            "the power supply is too weak: the board gets too little voltage and may fail at any time; use the supply "
            "made for it, with a short cable. Until then captions pause between pictures"
        )
        news.append(News(logging.WARNING, words))
    if UNDER_VOLTAGE in before and UNDER_VOLTAGE not in now:
        news.append(News(logging.INFO, "the voltage has been right again for a minute"))
    slowed, was_slowed = ({name for name in names if name != UNDER_VOLTAGE} for names in (now, before))
    if slowed - was_slowed:
        words = f"the firmware slows the board down ({_listed(slowed)}): captions pause between pictures"
        news.append(News(logging.WARNING, words))
    if was_slowed and not slowed:
        news.append(News(logging.INFO, "the firmware has not slowed the board down for a minute"))
    return news


def _listed(names: set[str]) -> str:
    return ", ".join(IN_WORDS[name] for name in BITS if name in names)
