"""Which sources are captioned: each is paused, resumed and switched off by itself."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

from edge_daemon.live_capture import LiveCapture
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.slots import Slots
from edge_daemon.source_config import CommandConfig
from edge_daemon.switches import UNTIL_RESUMED, Switches
from edge_daemon.topics import Topics

NAMES = ("gate", "porch", "yard")
TOPICS = Topics("edge-daemon", "test")


class House:
    """Three cameras, each of which always has a frame, and a connection without a broker."""

    def __init__(self) -> None:
        config = CommandConfig.model_validate({"type": "command", "command": ["true"], "interval_s": 7.5})
        self.cameras = {
            name: LiveCapture(name, config, lambda frame, why: False, lambda: None, lambda: None) for name in NAMES
        }
        self.connection = Connection(MqttConfig(host="127.0.0.1"), TOPICS, lambda: None)
        self._slots: Slots[Any] = Slots(NAMES)
        self.switches = Switches(self.connection, self.cameras, self._slots, lambda: None)
        self.switches.apply()

    async def captioned(self) -> set[str]:
        """Of which the frame is taken."""
        for name in NAMES:
            self._slots.renew(name, name)
        return {await self._slots.take() for _ in iter(lambda: self._slots.waiting, False)}

    def says(self, name: str, setting: str) -> bytes:
        message = self.connection.retained.get(TOPICS.state(name, setting))
        assert message is not None
        return message.payload


async def test_a_pause_of_one_source_is_no_pause_of_the_others() -> None:
    house = House()
    house.switches.pause("porch", None)
    assert await house.captioned() == {"gate", "yard"}
    assert [house.cameras[name].state.paused_until for name in NAMES] == ["", UNTIL_RESUMED, ""]
    house.switches.pause(None, None)
    assert await house.captioned() == set()
    house.switches.resume("gate")
    assert await house.captioned() == {"gate"}
    house.switches.resume(None)
    assert await house.captioned() == set(NAMES)


async def test_each_pause_ends_in_its_own_time() -> None:
    house = House()
    house.switches.pause("yard", None)
    house.switches.pause("porch", 0.01)
    house.switches.pause("gate", 5)
    assert await house.captioned() == set()
    until_s = datetime.fromisoformat(house.cameras["gate"].state.paused_until).timestamp()
    assert abs(until_s - time.time() - 300) < 30
    async with asyncio.timeout(30):
        while await house.captioned() != {"porch"}:
            await asyncio.sleep(0.01)
    assert house.cameras["porch"].state.paused_until == ""


async def test_a_source_that_is_switched_off_says_so_and_the_others_go_on() -> None:
    house = House()
    assert (house.says("porch", "enabled"), house.says("porch", "interval")) == (b"ON", b"7.5")
    porch = house.cameras["porch"]
    porch.config = porch.config.model_copy(update={"enabled": False})
    house.switches.apply()
    assert await house.captioned() == {"gate", "yard"}
    assert (house.says("porch", "enabled"), house.says("gate", "enabled")) == (b"OFF", b"ON")
    house.switches.resume(None)
    assert await house.captioned() == {"gate", "yard"}, "it was not paused"
