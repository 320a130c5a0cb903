"""On which days and at which hours: spans of local wall-clock time. Pure: the time is passed in. A leaf.

A span that goes over midnight belongs to the day on which it begins. What counts is what the clock on the wall shows:
an hour that is left out in spring is in no span, one that comes twice in autumn is in its span twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN = 24 * 60


@dataclass(frozen=True)
class Span:
    """Some hours on some days of the week."""

    days: frozenset[int]
    """On which it begins; Monday is 0, as for `datetime.weekday`."""
    from_min: int
    """Minutes after midnight, the first one that is in it."""
    to_min: int
    """The first one that is no longer in it, 1440 at most; less than `from_min` is the next day."""

    def covers(self, local: datetime) -> bool:
        """Whether a wall-clock time is in it."""
        today, minute = local.weekday(), local.hour * 60 + local.minute
        if self.from_min < self.to_min:
            return today in self.days and self.from_min <= minute < self.to_min
        began_today = today in self.days and minute >= self.from_min
        return began_today or ((today - 1) % 7 in self.days and minute < self.to_min)


def covered(spans: Iterable[Span], local: datetime) -> bool:
    """Whether a wall-clock time is in one of them."""
    return any(span.covers(local) for span in spans)


def days_of(word: str) -> frozenset[int]:
    """`mon`, or `mon-fri`; also `sat-mon`. Raises ValueError in words."""
    first, dash, last = (part.strip() for part in word.lower().partition("-"))
    if first not in DAYS or (last or first) not in DAYS or bool(dash) != bool(last):
        raise ValueError(f"{word!r} is not a day; use {', '.join(DAYS)}, or a range such as mon-fri")
    start = DAYS.index(first)
    length = (DAYS.index(last or first) - start) % 7 + 1
    return frozenset((start + number) % 7 for number in range(length))


def minute_of(time: str) -> int:
    """Minutes after midnight of `07:00`, up to `24:00`. Raises ValueError in words."""
    found = re.fullmatch(r"([0-9]{1,2}):([0-5][0-9])", time, re.ASCII)
    minute = int(found[1]) * 60 + int(found[2]) if found else -1
    if not 0 <= minute <= DAY_MIN:
        raise ValueError(f"{time!r} is not a time; write HH:MM from 00:00 to 24:00, for example 07:00")
    return minute
