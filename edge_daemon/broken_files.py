"""What is told of files that cannot be read: each of the first ones in a row, then their number now and then. Pure.

Else a card with a million broken files would write a million lines into the journal. Times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

TOLD = 100
"""In a row: enough to see what they have in common."""
EVERY_S = 60.0


@dataclass
class BrokenFiles:
    """Those of one source."""

    _in_a_row: int = 0
    _untold: int = 0
    _last: str = ""
    _told_at_s: float = 0.0

    def another(self, words: str, now_s: float) -> str:
        """There is one more, in words; what to say now, if anything."""
        self._in_a_row += 1
        if self._in_a_row <= TOLD:
            self._told_at_s = now_s
            return words
        self._untold, self._last = self._untold + 1, words
        return self.due(now_s)

    def due(self, now_s: float) -> str:
        """What to say of those that were not told of, when it is time."""
        return self._sum(now_s) if now_s - self._told_at_s >= EVERY_S else ""

    def over(self, now_s: float) -> str:
        """A good one came: what is still to be said of the row."""
        self._in_a_row = 0
        return self._sum(now_s)

    def _sum(self, now_s: float) -> str:
        """Nothing, when all were told of."""
        if not self._untold:
            return ""
        words = f"{self._untold} more files could not be read; the last one: {self._last}"
        self._untold, self._told_at_s = 0, now_s
        return words
