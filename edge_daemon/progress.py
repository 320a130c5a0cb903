"""Who made progress when: what the systemd watchdog is fed from. The clock is passed in.

Each task of the daemon beats under its own name with its own limit. A task that waits for another task of
ours (a full slot, an empty one) is well: `patiently` beats for it. A task that waits for a child beats
when the child reports a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE_S = 5.0
T = TypeVar("T")


class Progress:
    """The last beat of each task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits_s: dict[str, float] = {}
        self._beats_s: dict[str, float] = {}
        self._told: list[str] = []

    def expect(self, name: str, limit_s: float) -> Callable[[], None]:
        """Begin to watch a task; the function to call whenever it makes progress."""
        self._limits_s[name] = limit_s

        def beat() -> None:
            self._beats_s[name] = self._clock()

        beat()
        return beat

    def allow(self, name: str, limit_s: float) -> None:
        """Give a task that is watched another limit."""
        self._limits_s[name] = limit_s

    def stuck(self) -> list[str]:
        """Tasks whose last beat is older than their limit."""
        now_s = self._clock()
        return [name for name, limit_s in self._limits_s.items() if now_s - self._beats_s[name] > limit_s]

    def news(self) -> str:
        """Who got stuck and who goes on again since this was last asked; empty when nothing has changed."""
        stuck, told = self.stuck(), self._told
        self._told = stuck
        fresh, over = [n for n in stuck if n not in told], [n for n in told if n not in stuck]
        words = []
        if fresh:
            words.append(f"no progress: {', '.join(fresh)}; systemd's watchdog restarts the service unless it goes on")
        if over:
            words.append(f"goes on again: {', '.join(over)}")
        return "; ".join(words)


async def patiently(waiting: Awaitable[T], beat: Callable[[], None]) -> T:
    """Await something that may rightly take for ever, and beat meanwhile."""
    future = asyncio.ensure_future(waiting)
    try:
        while not future.done():
            beat()
            await asyncio.wait([future], timeout=PATIENCE_S)
        return future.result()
    finally:
        future.cancel()
