"""Does the worker grow? What it holds between two captions, over many of them. Pure: times are passed in.

A leak of ours, of a library or of the C library's heap shows there and nowhere else. It costs a planned recycle, long
before it costs the board.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from edge_daemon.units import MIB

SETTLING = 5
"""Pictures in which a heap finds its size: of the 0.5B's shape the second holds as much as the fifth (measured)."""
WINDOW = 5
"""Pictures that a median is of: one long answer is no growth."""
LEAST_BYTES, LEAST_PART = 64 * MIB, 0.1
"""Growth that matters, the larger of both: the heap of the 0.5B's shape differs by 15 MiB from picture to picture."""
RECYCLE_EVERY_S = 600.0
"""A leak so fast that this is too seldom is left to the stages."""


@dataclass
class Growth:
    """Of one worker at a time."""

    baseline_bytes: float | None = None
    grown_bytes: float = 0.0
    """Of the last pictures, over the first ones."""
    _seen: int = 0
    _last: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _recycled_at_s: float | None = None

    def begin(self) -> None:
        """Another worker, or the same one that is treated in another way."""
        self.baseline_bytes, self.grown_bytes, self._seen = None, 0.0, 0

    def pictured(self, held_bytes: int) -> None:
        """What the worker holds after a picture, without its KV cache."""
        self._seen += 1
        self._last.append(held_bytes)
        if self._seen < SETTLING + WINDOW:
            return
        middle = median(self._last)
        if self.baseline_bytes is None:
            self.baseline_bytes = middle
        self.grown_bytes = max(0.0, middle - self.baseline_bytes)

    @property
    def much(self) -> bool:
        """Whether it has grown by so much that it matters."""
        return self.grown_bytes > max(LEAST_BYTES, LEAST_PART * (self.baseline_bytes or 0.0))

    def recycle(self, now_s: float) -> str:
        """Why the worker should be replaced now, with numbers; empty when it should not. Counts as done."""
        recently = self._recycled_at_s is not None and now_s - self._recycled_at_s < RECYCLE_EVERY_S
        if not self.much or recently or self.baseline_bytes is None:
            return ""
        self._recycled_at_s = now_s
        grown, first = self.grown_bytes / MIB, self.baseline_bytes / MIB
        return f"it grew by {grown:.0f} MiB, from {first:.0f}, in {self._seen} pictures"
