"""Keeps the board cool: reads its sensors now and then, and waits between two pictures as long as thermal.py says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from edge_daemon.sensors import Sensors
from edge_daemon.thermal import DutyCycle

READ_EVERY_S = 5.0
log = logging.getLogger(__name__)


class Cooling:
    """The sensors, the pauses, and a word in the journal when something changes."""

    def __init__(
        self, duty: DutyCycle, sensors: Sensors, beat: Callable[[], None], on_change: Callable[[], None]
    ) -> None:
        """`beat` says that who rests is not stuck."""
        self.duty = duty
        self._sensors = sensors
        self._beat = beat
        self._on_change = on_change

    async def watch(self) -> None:
        """Read the sensors for ever, outside of the event loop: what they say is small, but a driver may be slow."""
        while True:
            before = self.duty.duty
            news = self.duty.update(await asyncio.to_thread(self._sensors.read), time.monotonic())
            for item in news:
                log.log(item.level, "%s", item.words)
            if news or self.duty.duty != before:
                self._on_change()
            await asyncio.sleep(READ_EVERY_S)

    async def rest(self) -> None:
        """Wait until the pause after the last picture is over; it becomes shorter or longer as the board does."""
        while (left_s := self.duty.rest_s(time.monotonic())) > 0:
            self._beat()
            await asyncio.sleep(min(left_s, 1.0))
