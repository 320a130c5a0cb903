"""The publisher at a real mosquitto that is stopped, killed or frozen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_daemon.demo.broker import Broker, free_port
from edge_daemon.mqtt import Connection
from edge_daemon.outbox import Outbox
from edge_daemon.publisher import publish_results
from tests.integration.listening import CAPTION, EVENT, Listener, connection, frozen, retained, until


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    made = Listener(broker.port)
    yield made
    made.stop()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


class Publisher:
    """The publisher's task, and what it is woken by."""

    def __init__(self, outbox: Outbox, to: Connection) -> None:
        self.written = asyncio.Event()
        self.beats = 0
        self._outbox = outbox
        self.task = asyncio.create_task(publish_results(outbox, self.written, to, self._beat, 0.2))

    def _beat(self) -> None:
        self.beats += 1

    def put(self, number: int) -> None:
        put(self._outbox, number)
        self.written.set()

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def put(outbox: Outbox, number: int) -> None:
    outbox.put("porch", [{"id": f"r{number}", "task": "caption", "caption": f"scene {number}"}], None)


async def test_results_are_confirmed_and_forgotten_in_order(broker: Broker, listener: Listener, outbox: Outbox) -> None:
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        for number in range(5):
            publisher.put(number)
        await until("all are confirmed", lambda: not len(outbox))
        await until("all are heard", lambda: len(listener.on(EVENT)) == 5)
        await publisher.stop()
        assert ours._unconfirmed == {}
    assert [(event["id"], event["seq"], event["replayed"]) for event in listener.events()] == [
        (f"r{number}", number + 1, False) for number in range(5)
    ]
    assert [payload for topic, payload, _ in listener.heard if topic == f"{CAPTION}/text"] == [
        f"scene {number}".encode() for number in range(5)
    ]
    assert retained(broker.port, CAPTION) == listener.on(EVENT)[-1]
    assert retained(broker.port, EVENT) is None


async def test_a_backlog_is_replayed_in_order(broker: Broker, outbox: Outbox) -> None:
    broker.stop()
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        for number in range(60):
            publisher.put(number)
        broker.start()
        listener = Listener(broker.port)
        await until("all are confirmed", lambda: not len(outbox))
        await publisher.stop()
    # those that were published before this listener came are not heard: what was retained tells of the last
    last = json.loads(retained(broker.port, CAPTION) or b"{}")
    assert (last["id"], last["replayed"]) == ("r59", True)
    numbers = [event["seq"] for event in listener.events()]
    assert numbers == list(range(61 - len(numbers), 61))
    assert all(event["replayed"] for event in listener.events())
    listener.stop()


async def test_a_broker_that_restarts_again_and_again_loses_nothing(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        written = 0
        for _ in range(3):
            for _ in range(40):
                publisher.put(written)
                written += 1
            await until("some are confirmed", lambda: len(outbox) < 40)
            broker.stop()
            publisher.put(written)
            written += 1
            broker.start()
        await until("all are confirmed", lambda: not len(outbox))
        await until("the last one is heard", lambda: f"r{written - 1}" in {event["id"] for event in listener.events()})
        await publisher.stop()
        assert ours._unconfirmed == {}
    events = listener.events()
    first = list(dict.fromkeys(event["seq"] for event in events))
    assert first == list(range(1, written + 1)), "each arrives, and for the first time in order"
    copies = Counter(json.dumps({**event, "replayed": None}) for event in events)
    assert len(copies) == written, "a repeated result is the same, but for `replayed`"


async def test_what_was_on_its_way_when_the_broker_died_is_a_replay(broker: Broker, outbox: Outbox) -> None:
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            for number in range(30):
                publisher.put(number)
            await until("some are on their way", lambda: len(ours._unconfirmed) > 20)
            broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        assert len(outbox) == 30
        broker.start()
        await until("all are confirmed", lambda: not len(outbox))
        await publisher.stop()
    last = json.loads(retained(broker.port, CAPTION) or b"{}")
    assert (last["id"], last["replayed"]) == ("r29", True)


async def test_a_network_that_is_cut_is_noticed_and_nothing_is_lost(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    """No end of the connection is seen here: only the silence tells."""
    async with connection(broker.port, keepalive_s=5) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            publisher.put(1)
            await until("the silence is noticed", lambda: not ours.connected.is_set())
            beats = publisher.beats
            publisher.put(2)
            await until("it waits and is well", lambda: publisher.beats > beats)
        await until("all are confirmed", lambda: not len(outbox))
        await until("all are heard", lambda: len({event["id"] for event in listener.events()}) == 2)
        await publisher.stop()


async def test_a_publisher_that_is_stopped_midway_leaves_the_rest_to_the_next(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    for number in range(30):
        put(outbox, number)
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            publisher = Publisher(outbox, ours)
            await until("some are on their way", lambda: ours._unconfirmed)
            await publisher.stop()
        assert len(outbox) == 30
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("all are confirmed", lambda: not len(outbox))
        await publisher.stop()
    await until("all are heard", lambda: len({event["id"] for event in listener.events()}) == 30)
    assert list(dict.fromkeys(event["seq"] for event in listener.events())) == list(range(1, 31))


async def test_the_publisher_beats_while_nobody_is_there(outbox: Outbox) -> None:
    put(outbox, 1)
    async with connection(free_port()) as ours:
        publisher = Publisher(outbox, ours)
        await until("it beats", lambda: publisher.beats > 3)
        await publisher.stop()
    assert len(outbox) == 1
