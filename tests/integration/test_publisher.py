"""The publisher at a real mosquitto that is stopped, killed or frozen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edge_daemon import mqtt, suspicion
from edge_daemon import publisher as publishing
from edge_daemon.clock import Stamp
from edge_daemon.demo.broker import Broker, free_port
from edge_daemon.mqtt import Connection
from edge_daemon.outbox import Outbox
from edge_daemon.results import utc
from tests.integration.listening import CAPTION, EVENT, TOPICS, Listener, connection, frozen, retained, until

FLAT_BYTES = 2 << 20
"""Of fifteen restarts of the broker and 600 results; a connection that is kept would take more."""
ANSWER = TOPICS.of("porch", "answer/open")


class Publisher:
    """The publisher's task, and what it is woken by."""

    def __init__(self, outbox: Outbox, to: Connection) -> None:
        self.written = asyncio.Event()
        self.beats = 0
        self._outbox = outbox
        ours = publishing.Publisher(outbox, to, self.written, self._beat, 0.2)
        self.task = asyncio.create_task(ours.run())

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
        assert not len(ours.outgoing)
    listener.catch_up()
    assert [(event["id"], event["seq"], event["replayed"]) for event in listener.events()] == [
        (f"r{number}", number + 1, False) for number in range(5)
    ]
    assert [payload for topic, payload, _ in listener.heard if topic == f"{CAPTION}/text"] == [
        f"scene {number}".encode() for number in range(5)
    ]
    assert retained(broker.port, CAPTION) == listener.on(EVENT)[-1]
    assert retained(broker.port, EVENT) is None


async def test_a_backlog_is_replayed_in_order_and_is_no_news(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    for number in range(60):
        put(outbox, number)
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("all are confirmed", lambda: not len(outbox))
        publisher.put(60)
        publisher.put(61)
        await until("all are heard", lambda: len(listener.on(EVENT)) == 62)
        await until("the last is heard", lambda: len(listener.on(CAPTION)) == 3)
        await publisher.stop()
    listener.catch_up()
    assert [(event["seq"], event["replayed"]) for event in listener.events()] == [
        (number, number <= 60) for number in range(1, 63)
    ]
    # who listens to a retained topic hears the last of the backlog, at once, and then what is new
    assert [json.loads(payload)["id"] for payload in listener.on(CAPTION)] == ["r59", "r60", "r61"]
    assert listener.on(f"{CAPTION}/text") == [b"scene 59", b"scene 60", b"scene 61"]
    assert next(topic for topic, _, _ in listener.heard if topic in (EVENT, CAPTION)) == CAPTION


async def test_live_results_do_not_wait_for_the_backlog_and_retained_ones_never_go_back(
    broker: Broker, listener: Listener, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        put(outbox, number)
    outbox.put("porch", [{"id": "a", "task": "open", "question": "Open?", "answer": "no"}], None)
    monkeypatch.setattr(publishing, "BATCH", 3)
    monkeypatch.setattr(publishing, "REPLAY_PER_S", 0.001)
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("some of the backlog are heard", lambda: len(listener.on(EVENT)) == 3)
        for number in (9, 10):
            publisher.put(number)
            await until("the live one is confirmed", lambda: len(outbox) == 7)
        await publisher.stop()
    monkeypatch.setattr(publishing, "REPLAY_PER_S", 1000.0)
    outbox.close()  # the daemon is started again
    again = Outbox(tmp_path / "outbox.db")
    async with connection(broker.port) as ours:
        publisher = Publisher(again, ours)
        await until("all are confirmed", lambda: not len(again))
        await publisher.stop()
    again.close()
    listener.catch_up()
    assert len(listener.events()) == 12
    replayed = [event["id"] for event in listener.events() if event["replayed"]]
    assert replayed == [*(f"r{number}" for number in range(9)), "a"], "in order"
    assert [event["id"] for event in listener.events() if not event["replayed"]] == ["r9", "r10"]
    assert [json.loads(payload)["id"] for payload in listener.on(CAPTION)] == ["r8", "r9", "r10"]
    assert json.loads(retained(broker.port, CAPTION) or b"{}")["id"] == "r10"
    assert [json.loads(payload)["id"] for payload in listener.on(ANSWER)] == ["a", "a"], "once with each connect"


async def test_a_result_that_the_broker_never_takes_is_set_aside_and_the_others_are_sent(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        outbox.put("no#where", [{"id": "x", "task": "caption", "caption": "?"}], None)  # no topic can be so
        publisher = Publisher(outbox, ours)
        publisher.put(1)
        await until("all are gone", lambda: not len(outbox))
        await until("the other is heard", lambda: [event["id"] for event in listener.events()] == ["r1"])
        await publisher.stop()
    assert (outbox.aside(), outbox.dropped("refused")) == (1, 0)


async def test_a_result_is_kept_until_its_event_is_confirmed_whatever_is_refused(
    broker: Broker, listener: Listener, outbox: Outbox
) -> None:
    async with connection(broker.port, max_packet_kib=4) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            task = "t" * 1000  # its topic makes the answer too large, and not the event
            outbox.put("porch", [{"id": "r", "task": task, "question": "?", "answer": "x" * 2500}], None)
            publisher.written.set()
            await until("the answer is refused", lambda: ours.complaints.refused)
            await until("the event is on its way", lambda: ours.outgoing.owed)
            broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        await publisher.stop()
        assert len(outbox) == 1
        listener.again()  # a broker that is killed has not kept its session
        broker.start()
        await until("connected again", ours.connected.is_set)
        await until("somebody listens again", listener.listens)
        publisher = Publisher(outbox, ours)
        await until("it is heard", lambda: [event["id"] for event in listener.events()] == ["r"])
        await until("it is confirmed", lambda: not len(outbox))
        await publisher.stop()


async def test_what_was_made_before_the_time_was_known_is_marked_then_corrected(
    broker: Broker, listener: Listener, tmp_path: Path
) -> None:
    now = Stamp(86400.0, 60.0, "boot", False)
    outbox = Outbox(tmp_path / "clock.db", clock=lambda: now)
    body = {"task": "caption", "caption": "A cat.", "captured_at": utc(86390.0)}
    outbox.put("porch", [{"id": "early", **body}], None)
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("it is heard", lambda: len(listener.events()) == 1 and not len(outbox))
        await publisher.stop()
    outbox.put("porch", [{"id": "late", **body}], None)
    now = Stamp(1.8e9, 160.0, "boot", True)
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("it is heard", lambda: len(listener.events()) == 2)
        await until("all are confirmed", lambda: not len(outbox))
        await publisher.stop()
    outbox.close()
    early, late = listener.events()
    assert (early["captured_at"], early["clock_synced"]) == (utc(86390.0), False)
    assert (late["captured_at"], late.get("clock_synced")) == (utc(1.8e9 - 110.0), None)


async def test_a_broker_that_restarts_again_and_again_loses_nothing(
    broker: Broker, listener: Listener, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.05)
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_S", 0.2)
    monkeypatch.setattr(suspicion, "LONGEST_DELAY_S", 0.1)
    async with connection(broker.port) as ours:
        publisher = Publisher(outbox, ours)
        await until("connected", ours.connected.is_set)
        written, rss_bytes = 0, []
        for _ in range(20):
            for _ in range(40):
                publisher.put(written)
                written += 1
            await until("some are confirmed", lambda: len(outbox) < 40)
            broker.stop()
            publisher.put(written)
            written += 1
            broker.start()
            rss_bytes.append(psutil.Process().memory_info().rss)
        await until("all are confirmed", lambda: not len(outbox))
        await until("the last one is heard", lambda: f"r{written - 1}" in {event["id"] for event in listener.events()})
        await publisher.stop()
        assert not len(ours.outgoing)
    print(f"\ngrown by {(max(rss_bytes) - rss_bytes[5]) >> 10} KiB in 15 restarts")
    assert max(rss_bytes) - rss_bytes[5] < FLAT_BYTES, "this process, with all that the listener has heard"
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
            await until("some are on their way", lambda: len(ours.outgoing) > 20)
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
            await until("some are on their way", lambda: len(ours.outgoing))
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
