"""One slot per source: what was captured and waits for the worker; and a short line of requests.

A folder's slot is full until its picture is taken (nothing is dropped); in a camera's slot the newest frame wins.
Taking is fair: each source gets turns by its weight, and whoever was served longest ago comes first. A request goes
before the pictures that wait, but not two in a row: whoever asks without end does not keep the sources from their
turn. The slot of a source that is held is not taken from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

LONGEST_LINE = 8
"""Requests that wait. A board that takes half a minute for each answers the last one after some minutes."""
T = TypeVar("T")


class Slots(Generic[T]):
    """A slot for each of the named sources."""

    def __init__(self, names: Iterable[str], weight: Callable[[str], float] = lambda name: 1.0) -> None:
        """`weight`: a source of 2 gets twice as many turns as one of 1, while both have something waiting."""
        self._weight = weight
        self._order = list(names)
        self._due = dict.fromkeys(self._order, 0.0)
        """When each source has its next turn, in turns of weight 1 (stride scheduling, Waldspurger 1995)."""
        self._turn = 0.0
        self._content: dict[str, T] = {}
        self._line: deque[T] = deque()
        self._held: frozenset[str] = frozenset()
        self._requested = False
        """Whether the last that was taken was a request."""
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._line) or self._next_name() is not None

    async def put(self, name: str, item: T) -> None:
        """Wait until the slot is empty and fill it."""
        await self._until(lambda: name not in self._content)
        self._content[name] = item
        self._changed.set()

    def renew(self, name: str, item: T) -> bool:
        """Fill the slot, whatever is in it; True if that was something."""
        replaced = name in self._content
        self._content[name] = item
        self._changed.set()
        return replaced

    def ask(self, item: T) -> bool:
        """Put a request into the line; False when that is full."""
        if len(self._line) >= LONGEST_LINE:
            return False
        self._line.append(item)
        self._changed.set()
        return True

    def hold(self, names: Iterable[str]) -> None:
        """Take nothing from these slots until other names are given."""
        self._held = frozenset(names)
        self._changed.set()

    async def take(self) -> T:
        """Wait for an item, and take it out."""
        await self._until(lambda: self.waiting)
        self._changed.set()
        name = self._next_name()
        self._requested = bool(self._line) and not (self._requested and name is not None)
        if self._requested:
            return self._line.popleft()
        assert name is not None
        self._order.remove(name)
        self._order.append(name)
        self._turn = self._next_turn(name)
        self._due[name] = self._turn + 1 / self._weight(name)
        return self._content.pop(name)

    def _next_name(self) -> str | None:
        waiting = [name for name in self._order if name in self._content and name not in self._held]
        return min(waiting, key=self._next_turn, default=None)

    def _next_turn(self, name: str) -> float:
        """A source with nothing waiting earns no credit."""
        return max(self._due[name], self._turn)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for it. Between its being true and the caller's next step nobody else runs."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()
