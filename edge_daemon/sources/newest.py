"""Which packets of a video stream have to be decoded for its newest picture. Pure: the clock is passed in.

A key frame is a picture of its own; every other packet only says what changed since the one before, so that a picture
in the middle costs all of them from the key frame on. `Group` keeps these packets; `wants` says which are worth it.
It knows nothing of codecs, and of a packet no more than its size and whether it is a key frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_daemon.choices import Decode

RARE_S = 4.0
"""Key frames that come less often do not show what happens; cameras send one every second or two by default."""
MANY_PACKETS, MANY_BYTES = 1500, 24 << 20
"""So many are decoded whether wanted or not: a minute at 25 a second; twenty seconds of 4K at 10 Mbit/s."""


@dataclass(frozen=True)
class Arrived:
    """A packet and when it came."""

    packet: Any = field(repr=False)
    number: int
    """Counted from 1 in the order of arrival."""
    at_s: float
    """Unix time."""
    is_key: bool
    size_bytes: int


class Group:
    """The packets from the last key frame on."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._packets: list[Arrived] = []
        self._bytes = 0
        self._interval_s = 0.0  # between the last two key frames
        self.key: Arrived | None = None
        """The key frame; it stays known when the packets have been let go."""

    def add(self, arrived: Arrived) -> None:
        """The next packet. What no picture can be made of is dropped: whatever comes before the first key frame."""
        if arrived.is_key:
            self._interval_s = arrived.at_s - self.key.at_s if self.key else 0.0
            self.key = arrived
            self._clear()
        elif self.key is None or self._decode == "keyframes":
            return
        elif len(self._packets) >= 2 * MANY_PACKETS or self._bytes >= 2 * MANY_BYTES:
            self._clear()  # whoever decodes cannot keep up; the decoder goes on at the next key frame
        self._packets.append(arrived)
        self._bytes += arrived.size_bytes

    def let_go(self, packets: Sequence[Arrived]) -> None:
        """Forget what has been decoded, unless a key frame came and it is forgotten already."""
        if packets and self._packets and self._packets[0] is packets[0]:
            del self._packets[: len(packets)]
            self._bytes -= sum(arrived.size_bytes for arrived in packets)

    def due(self) -> list[Arrived]:
        """What is to be decoded although nobody asks: everything, or what there is too much of."""
        many = len(self._packets) >= MANY_PACKETS or self._bytes >= MANY_BYTES
        return list(self._packets) if many or self._decode == "all" else []

    def wanted(self, fresh: bool, now_s: float) -> list[Arrived]:
        """What a picture is made of for somebody who asks now: the key frame, or all packets up to the newest."""
        if self.key is None:
            return []
        rare = max(self._interval_s, now_s - self.key.at_s) > RARE_S
        everything = self._decode == "all" or (self._decode == "auto" and (fresh or rare))
        return list(self._packets) if everything else self._packets[:1]

    def _clear(self) -> None:
        self._packets = []
        self._bytes = 0
