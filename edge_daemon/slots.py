"""One slot per source: what was captured and waits for the worker.

A folder's slot is full until its picture is taken (nothing is dropped). Taking is fair: the source that
was served longest ago comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """A slot for each of the named sources."""

    def __init__(self, names: Iterable[str]) -> None:
        self._order = list(names)
        self._content: dict[str, T] = {}
        self._changed = asyncio.Condition()

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._content)

    async def put(self, name: str, item: T) -> None:
        """Wait until the slot is empty and fill it."""
        async with self._changed:
            await self._changed.wait_for(lambda: name not in self._content)
            self._content[name] = item
            self._changed.notify_all()

    async def take(self) -> T:
        """Wait for an item, and empty its slot."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._content))
            name = next(n for n in self._order if n in self._content)
            self._order.remove(name)
            self._order.append(name)
            self._changed.notify_all()
            return self._content.pop(name)
