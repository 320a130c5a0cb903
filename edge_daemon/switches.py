"""Which sources are captioned now: all that are switched on and not paused. Says so in their state and their topics."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from edge_daemon.capture import AnyCapture
from edge_daemon.jobs import Job
from edge_daemon.mqtt import Connection
from edge_daemon.results import utc
from edge_daemon.slots import Slots
from edge_daemon.source_config import LiveSource

UNTIL_RESUMED = "resumed"
"""The end of a pause that has none."""


class Switches:
    """Holds the slots of the others. A folder that is held loses nothing: its files wait."""

    def __init__(
        self,
        connection: Connection,
        captures: Mapping[str, AnyCapture],
        slots: Slots[Job],
        on_change: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._captures = captures
        self._slots = slots
        self._on_change = on_change
        self._until_s: dict[str, float] = {}
        """Monotonic ends of the pauses."""
        self._timer: asyncio.TimerHandle | None = None

    def pause(self, source: str | None, minutes: float | None) -> None:
        """Caption nothing of one source or of all, for a while or until `resume`; a later pause replaces an earlier."""
        end_s = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._until_s |= dict.fromkeys([source] if source else self._captures, end_s)
        self.apply()

    def resume(self, source: str | None) -> None:
        """Go on."""
        for name in [source] if source else list(self._captures):
            self._until_s.pop(name, None)
        self.apply()

    def apply(self) -> None:
        """Make it so, whatever has changed."""
        now_s, now_unix_s = time.monotonic(), time.time()
        self._until_s = {name: end_s for name, end_s in self._until_s.items() if end_s > now_s}
        for name, capture in self._captures.items():
            end_s = self._until_s.get(name, 0.0)
            until = UNTIL_RESUMED if end_s == math.inf else utc(now_unix_s + end_s - now_s) if end_s else ""
            capture.state.enabled, capture.state.paused_until = capture.config.enabled, until
            payload = b"ON" if capture.config.enabled else b"OFF"
            self._connection.state(self._connection.topics.state(name, "enabled"), payload)
            if isinstance(capture.config, LiveSource):
                interval = f"{capture.config.interval_s:g}".encode()
                self._connection.state(self._connection.topics.state(name, "interval"), interval)
            capture.changed()
        self._slots.hold([n for n, c in self._captures.items() if n in self._until_s or not c.config.enabled])
        self._wake_at(min(self._until_s.values(), default=math.inf))
        self._on_change()

    def _wake_at(self, end_s: float) -> None:
        """Look again when the next pause is over."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        left_s = end_s - time.monotonic()
        self._timer = None if left_s == math.inf else loop.call_later(max(0.0, left_s), self.apply)
