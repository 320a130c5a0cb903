"""When to start a dead child again, and when a silent one is taken for stuck. Pure objects: times are passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 300.0
GOOD_TIME_S = 600.0
"""A child that lived for so long has earned a fresh start."""
HOPELESS_DEATHS = 2
"""A child that never became ready and died so often for the same reason will not become ready."""


@dataclass
class RestartPolicy:
    """1 s, 2 s, 4 s … 5 min; for ever if the child ever worked."""

    deaths: int = 0
    """In a row, without a good time between them."""
    last_reason: str = ""
    _ready_at_s: float | None = None
    _ever_ready: bool = False
    _same_reason: int = field(default=0)

    def ready(self, now_s: float) -> None:
        """The child says that it works."""
        self._ready_at_s = now_s
        self._ever_ready = True

    def died(self, reason: str, now_s: float, *, comes_again: bool = False, passes: bool = False) -> float | None:
        """Seconds to wait before the next start, or None when trying again is hopeless.

        `comes_again`: this death will repeat, so count it even if the child had become ready but answered nothing.
        `passes`: this death says nothing about the child, so it is never hopeless.
        """
        if self._ready_at_s is not None and now_s - self._ready_at_s >= GOOD_TIME_S:
            self.deaths = 0
        self._ready_at_s = None
        self._same_reason = self._same_reason + 1 if reason == self.last_reason else 1
        self.last_reason = reason
        self.deaths += 1
        if (comes_again or not (self._ever_ready or passes)) and self._same_reason >= HOPELESS_DEATHS:
            return None
        return float(min(FIRST_DELAY_S * 2 ** min(self.deaths - 1, 16), LONGEST_DELAY_S))


REMEMBERED = 20
"""Pictures that the pace is known from."""
SILENCE_FACTOR = 10
"""A board that is hot, or busy with something else, may take some times longer than it did; ten times is stuck."""
SHORTEST_SILENCE_S = 60.0
"""Whatever was measured: a board that reads its weights from an SD card once more is not stuck."""
UNKNOWN_SILENCE_S = 300.0
"""While nothing was measured."""


@dataclass
class Pace:
    """What a picture takes here, and how long a worker may therefore say nothing."""

    configured_silence_s: float | None = None
    """What the owner decided; wins over everything."""
    _taken_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _silences_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _rehearsed_s: float | None = None

    def pictured(self, taken_s: float, longest_silence_s: float) -> None:
        """A picture was answered, and between two of the worker's steps lay so much at most."""
        self._taken_s.append(taken_s)
        self._silences_s.append(longest_silence_s)

    def rehearsed(self, taken_s: float, longest_silence_s: float) -> None:
        """The same of a picture that nobody sent: it tells the pace until there are real ones."""
        self._rehearsed_s = taken_s
        self._silences_s.append(longest_silence_s)

    @property
    def interval_s(self) -> float | None:
        """What a picture takes: the median of the last ones, or None when there was none."""
        return median(self._taken_s) if self._taken_s else self._rehearsed_s

    @property
    def silence_s(self) -> float:
        """How long a worker may say nothing."""
        if self.configured_silence_s is not None:
            return self.configured_silence_s
        if not self._silences_s:
            return UNKNOWN_SILENCE_S
        return max(SHORTEST_SILENCE_S, SILENCE_FACTOR * max(self._silences_s))
