"""Another broker by `reload`, at two real mosquittos: nothing is lost, and each knows whether we are there."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_daemon import mqtt, visit
from edge_daemon import publisher as publishing
from edge_daemon.demo.broker import Broker, free_port
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outbox import Outbox
from edge_daemon.topics import Incoming
from tests.integration.listening import SOURCE_STATE, TOPICS, Listener, connection, frozen, retained, until, warnings
from tests.integration.service import BASE, Service, running, subscribed, wait_for
from tests.integration.test_mqtt import say


@pytest.fixture
def other(tmp_path: Path, broker: Broker) -> Iterator[Broker]:
    """A second broker, which is not started."""
    (tmp_path / "other").mkdir()
    made = Broker(tmp_path / "other")
    yield made
    made.stop()


def at(port: int, **options: Any) -> MqttConfig:
    return MqttConfig(host="127.0.0.1", port=port, **options)


async def test_results_under_way_reach_one_of_the_two_and_states_and_commands_the_new_one(
    broker: Broker, other: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other.start()
    outbox, arrived, count = Outbox(tmp_path / "outbox.db"), list[Incoming](), 300
    old, new, written = Listener(broker.port), Listener(other.port), asyncio.Event()
    async with connection(broker.port) as ours:
        ours.subscribe(TOPICS.incoming, arrived.append)
        ours.state(SOURCE_STATE, b"online")
        task = asyncio.create_task(publishing.Publisher(outbox, ours, written, lambda: None, 0.2).run())
        await until("connected", ours.connected.is_set)
        for number in range(count):
            outbox.put("porch", [{"id": f"r{number}", "task": "caption", "caption": "x"}], None)
            written.set()
            if number == count // 2:
                ours.move(at(other.port))
            await asyncio.sleep(0.001)
        await until("all are confirmed", lambda: not len(outbox))
        await asyncio.to_thread(say, other.port, TOPICS.request("stats"), b"?")
        await until("a command comes from the new one", lambda: arrived)
        assert (ours.sessions, ours.problem, ours.address) == (2, "", f"127.0.0.1:{other.port}")
        assert retained(other.port, SOURCE_STATE) == retained(other.port, TOPICS.availability) == b"online"
        task.cancel()
    ids = [event["id"] for event in [*old.events(), *new.events()]]
    assert set(ids) == {f"r{number}" for number in range(count)}
    assert old.events()
    assert old.heard[-2:] == [(SOURCE_STATE, b"offline", False), (TOPICS.availability, b"offline", False)]
    assert retained(broker.port, TOPICS.availability) == b"offline"
    assert warnings(caplog) == []
    old.stop()
    new.stop()
    outbox.close()


async def test_a_new_one_that_is_not_there_is_told_and_waited_for(
    broker: Broker, other: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.05)
    caplog.set_level(logging.INFO)
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        ours.move(at(other.port))
        await until("it is told", lambda: "nothing listens there" in ours.problem)
        assert ours.problem.startswith(f"the broker 127.0.0.1:{other.port} cannot be reached: ")
        assert retained(broker.port, TOPICS.availability) == b"offline"
        other.start()
        await until("connected", lambda: ours.connected.is_set() and not ours.problem)
    assert f"from now on the broker is 127.0.0.1:{other.port}" in caplog.text
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("meanwhile", [True, False])
async def test_an_old_one_that_is_gone_keeps_nobody(
    broker: Broker, other: Broker, meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the pause before the next attempt nor in the middle of a connection."""
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 300)
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_S", 300)
    monkeypatch.setattr(visit, "CONFIRM_S", 0.2)
    other.start()
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        if meanwhile:
            broker.stop(kill=True)
            await until("it waits", lambda: ours._again is not None)
            ours.move(at(other.port))
            await until("connected", ours.connected.is_set)
        else:
            with frozen(broker):
                ours.move(at(other.port))
                await until("connected", ours.connected.is_set)
        assert ours.address.endswith(str(other.port))


async def test_the_last_of_several_moves_counts_and_one_to_where_we_are_is_none(broker: Broker, other: Broker) -> None:
    other.start()
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        ours.move(at(broker.port))
        assert ours.connected.is_set()
        ours.move(at(broker.port, client_id="other"))
        ours.move(at(other.port))
        await until("connected", ours.connected.is_set)
        assert (ours.sessions, ours.config) == (2, at(other.port))
        ours.move(at(other.port, protocol="3.1.1"))
        await until("another protocol", lambda: ours.protocol == "3.1.1")
        assert ours.sessions == 3


async def test_a_stop_in_the_middle_of_a_move_is_clean(broker: Broker, other: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        ours.move(at(other.port))
    assert retained(broker.port, TOPICS.availability) == b"offline"


def test_reload_moves_the_service(broker: Broker, other: Broker, tmp_path: Path) -> None:
    """The answer comes from the old broker; the new one has everything; the base topic has to wait.

    Where there is no broker, the file and SIGHUP are the way back.
    """
    other.start()
    samples = sample_pictures(tmp_path / "samples", 1, seed=3)
    with subscribed(broker.port) as old, subscribed(other.port) as new:
        service = Service(tmp_path, broker.port)

        def write(section: dict[str, Any]) -> None:
            document = yaml.safe_load(service.config.read_text())
            service.config.write_text(yaml.safe_dump({**document, "mqtt": section}))

        with running(service):
            wait_for("it is well", lambda: (old.last_health() or {}).get("state") == "ok")
            write({"port": other.port, "base_topic": "elsewhere"})
            say(broker.port, f"{BASE}/request/reload", b"{}")
            answer = wait_for("the answer", lambda: old.results("response/reload"))[0]
            assert answer["data"] == {
                "applied": ["mqtt"],
                "overridden": [],
                "needs_restart": ["mqtt.base_topic"],
                "restart_required": True,
            }
            wait_for("it is offline there", lambda: old.on("availability")[-1].payload == b"offline")
            wait_for("and online here", lambda: (new.last_health() or {}).get("state") == "ok")
            samples[0][0].rename(service.inbox / samples[0][0].name)
            wait_for("it is captioned", lambda: new.results("inbox/caption"))
            say(other.port, f"{BASE}/request/stats", b"{}")
            wait_for("it listens", lambda: new.results("response/stats"))
            wait_for("Home Assistant", lambda: retained(other.port, "homeassistant/device/+/config"))
            assert old.messages[-1].topic == f"{BASE}/availability"
            write({"port": free_port()})
            say(other.port, f"{BASE}/request/reload", b"{}")
            wait_for("it is nowhere", lambda: "nothing listens there" in service.log())
            write({"port": broker.port})
            assert service.process is not None
            service.process.send_signal(signal.SIGHUP)
            wait_for("and back by the file", lambda: old.on("availability")[-1].payload == b"online")
            assert service.end() == 0
