"""Home Assistant is told what there is: over a real broker, in the order in which it must happen."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edge_daemon import discovery, homeassistant, topics
from edge_daemon.config import Config
from edge_daemon.demo.broker import Broker
from edge_daemon.discovery import Discovery
from edge_daemon.homeassistant import Facts
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.topics import Incoming
from tests.integration.listening import TOPICS, Listener, retained, until

SCHEMA = json.loads((Path(__file__).parents[1] / "homeassistant.schema.json").read_text())
PREFIX, DEVICE = "homeassistant", "edge_daemon_1f"
TOPIC = topics.discovery(PREFIX, DEVICE)
STATUS = topics.home_assistant_status(PREFIX)
GATE = {"id": "gate", "ask": "Is it open?", "type": "yes_no"}


def message(*questions: dict[str, Any], prefix: str = "porch") -> dict[str, Any]:
    """What Home Assistant is told of a node with one source."""
    source = {"type": "folder", "path": "/srv", "questions": questions}
    config = Config.model_validate({"node": "test", "sources": {prefix: source}})
    return homeassistant.document(config, TOPICS, Facts(DEVICE, "1.2.3"))


@dataclass
class Node:
    """A connection with its discovery."""

    connection: Connection
    discovery: Discovery
    turns: list[None]
    """Grows whenever it has told what is to be told, if anything."""


@asynccontextmanager
async def node(port: int, describe: Callable[[], dict[str, Any] | None], **mqtt: Any) -> AsyncIterator[Node]:
    """One that runs."""
    made: list[Discovery] = []
    turns: list[None] = []

    def on_change() -> None:
        made[0].refresh()

    async def afterwards() -> bool:
        turns.append(None)
        return True

    connection = Connection(MqttConfig(host="127.0.0.1", port=port, **mqtt), TOPICS, on_change)
    made.append(Discovery(connection, PREFIX, DEVICE, describe, afterwards))
    connection.start()
    task = asyncio.create_task(made[0].run())
    try:
        yield Node(connection, made[0], turns)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await connection.stop()


@pytest.fixture
def listener(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Hears all; and nobody waits longer than a broker on this machine needs."""
    monkeypatch.setattr(discovery, "EARLIER_S", 0.5)
    monkeypatch.setattr(discovery, "LONGEST_DELAY_S", 0.6)
    return listener


def publish(port: int, topic: str, payload: bytes, *, retain: bool = False) -> None:
    argv = [str(shutil.which("mosquitto_pub")), "-p", str(port), "-t", topic, "-s", *(["-r"] if retain else [])]
    subprocess.run(argv, input=payload, check=True)


def told(listener: Listener) -> list[dict[str, Any]]:
    """Every discovery message that was heard."""
    return [json.loads(payload) for payload in listener.on(TOPIC) if payload]


async def test_one_message_on_connecting_and_it_stays(broker: Broker, listener: Listener) -> None:
    async with node(broker.port, message):
        await until("it is told", lambda: told(listener))
    (only,) = told(listener)
    jsonschema.validate(only, SCHEMA)
    assert listener.on(TOPIC) == [topics.json_bytes(message())]
    assert json.loads(retained(broker.port, TOPIC) or b"") == message()


async def test_what_is_gone_from_the_configuration_is_removed_first(broker: Broker, listener: Listener) -> None:
    earlier = message(GATE, prefix="shed")
    publish(broker.port, TOPIC, json.dumps(earlier).encode(), retain=True)
    async with node(broker.port, message):
        await until("it is told twice", lambda: len(told(listener)) == 3)
    _, removing, last = told(listener)
    gone = earlier["components"].keys() - message()["components"].keys()
    assert "shed.answer.gate.binary_sensor" in gone
    assert {key: removing["components"][key] for key in gone} == {
        key: {"platform": earlier["components"][key]["platform"]} for key in gone
    }
    jsonschema.validate(removing, SCHEMA)
    assert last == message()


async def test_a_question_that_changes_is_told_while_it_runs(broker: Broker, listener: Listener) -> None:
    questions = [GATE]
    async with node(broker.port, lambda: message(*questions)) as ours:
        await until("it is told", lambda: told(listener))
        questions.clear()
        ours.discovery.refresh()
        await until("the change is told", lambda: len(told(listener)) == 3)
    assert told(listener)[1]["components"]["porch.answer.gate.binary_sensor"] == {"platform": "binary_sensor"}
    assert told(listener)[2] == message()


async def test_home_assistant_starts_and_is_told_again_with_all_states(broker: Broker, listener: Listener) -> None:
    async with node(broker.port, message) as ours:
        ours.connection.state(TOPICS.health, b"{}")
        await until("it is told", lambda: told(listener))
        heard: list[Incoming] = []
        ours.connection.subscribe([STATUS], heard.append)
        publish(broker.port, STATUS, b"offline")
        await until("it is heard", lambda: heard)
        ours.discovery.refresh()  # after what `offline` would do
        await until("it is told again", lambda: len(told(listener)) == 2)
        ours.connection.state(TOPICS.health, b"last")
        publish(broker.port, STATUS, b"online")
        await until("it and the states are told again", lambda: listener.on(TOPICS.health)[-2:] == [b"last", b"last"])
    listener.catch_up()
    assert told(listener) == [message()] * 3
    assert listener.on(TOPICS.health) == [b"{}", b"last", b"last"]


async def test_a_broker_that_has_forgotten_all_is_told_again(
    broker: Broker, listener: Listener, tmp_path: Path
) -> None:
    async with node(broker.port, message):
        await until("it is told", lambda: told(listener))
        broker.stop(kill=True)
        (tmp_path / "broker" / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        await until("it is told again", lambda: len(told(listener)) >= 2)
    assert json.loads(retained(broker.port, TOPIC) or b"") == message()


async def test_another_broker_is_not_told_what_the_last_one_has_to_remove(
    broker: Broker, listener: Listener, tmp_path: Path
) -> None:
    questions = [GATE]
    (tmp_path / "other").mkdir()
    with Broker(tmp_path / "other") as other:
        newcomer = Listener(other.port)
        async with node(broker.port, lambda: message(*questions)) as ours:
            await until("it is told", lambda: told(listener))
            questions.clear()
            ours.connection.move(ours.connection.config.model_copy(update={"port": other.port}))
            await until("the other one is told", lambda: told(newcomer))
        newcomer.catch_up()
        newcomer.stop()
    assert told(newcomer) == [message()]


async def test_switched_off_it_takes_back_what_there_is_and_says_nothing_else(
    broker: Broker, listener: Listener
) -> None:
    publish(broker.port, TOPIC, json.dumps(message()).encode(), retain=True)
    async with node(broker.port, lambda: None):
        await until("it is cleared", lambda: listener.on(TOPIC)[1:] == [b""])
    assert retained(broker.port, TOPIC) is None
    async with node(broker.port, lambda: None) as ours:
        await until("it has had its turn", lambda: ours.turns)
    listener.catch_up()
    assert len(listener.on(TOPIC)) == 2


async def test_a_message_that_is_never_taken_is_tried_once_and_a_smaller_one_arrives(
    broker: Broker, listener: Listener
) -> None:
    """News of the connection wake whoever tells, and a refusal is such news."""
    small = {**message(), "components": {}}
    described = [message(GATE)]
    async with node(broker.port, lambda: described[0], max_packet_kib=4) as ours:
        await until("it is refused, and woken by that", lambda: len(ours.turns) == 2)
        assert ours.connection.complaints.refused == 1
        described[0] = small
        ours.discovery.refresh()
        await until("the smaller one", lambda: told(listener) == [small])


@pytest.mark.parametrize("rubbish", [b"{", b"[1]", b'{"components": 5}', b"\xff"])
async def test_rubbish_on_our_topic_is_replaced(broker: Broker, listener: Listener, rubbish: bytes) -> None:
    publish(broker.port, TOPIC, rubbish, retain=True)
    async with node(broker.port, message):
        await until("it is told", lambda: topics.json_bytes(message()) in listener.on(TOPIC))
    assert json.loads(retained(broker.port, TOPIC) or b"") == message()
