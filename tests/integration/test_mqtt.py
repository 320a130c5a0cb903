"""The connection and the publisher at a real mosquitto that is stopped, killed, frozen, replaced or closed to us."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import SecretStr

from edge_daemon.config import MqttConfig
from edge_daemon.demo.broker import Broker, find_mosquitto, free_port
from edge_daemon.mqtt import Connection, publish_results
from edge_daemon.outbox import Outbox
from edge_daemon.topics import Topics
from tests.conftest import missing

TOPICS = Topics("edge-daemon", "test")
SOURCE_STATE = TOPICS.of("porch", "availability")
EVENT, CAPTION = TOPICS.of("porch", "event"), TOPICS.of("porch", "caption")
LONG_S = 60.0


async def until(what: str, probe: Callable[[], object]) -> None:
    """Wait for something that will come."""
    try:
        async with asyncio.timeout(LONG_S):
            while not probe():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {LONG_S:.0f} s: {what}") from None


class Listener:
    """A subscriber whose session the broker keeps, so that it misses nothing while the broker restarts."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        """Topic, payload, and whether it was retained."""
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _c, _u, m: self.heard.append((m.topic, bytes(m.payload), m.retain))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(LONG_S)

    def on(self, topic: str) -> list[bytes]:
        return [payload for heard, payload, _ in self.heard if heard == topic]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.on(EVENT)]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


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


def retained(port: int, topic: str) -> bytes | None:
    """What a newcomer hears first, or None."""
    argv = [str(shutil.which("mosquitto_sub")), "-p", str(port), "-t", topic, "-C", "1", "-W", "2", "-N"]
    return subprocess.run(argv, capture_output=True, check=False).stdout or None


@asynccontextmanager
async def connection(port: int, **options: Any) -> AsyncIterator[Connection]:
    """A started connection; stopped afterwards."""
    made = Connection(MqttConfig(host="127.0.0.1", port=port, **options), TOPICS, lambda: None)
    made.start()
    try:
        yield made
    finally:
        await made.stop()
        assert not made._thread.is_alive()


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


# ---- being there ----------------------------------------------------------------------------------------


async def test_who_connects_says_so(broker: Broker, listener: Listener) -> None:
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        await until("both are online", lambda: len(listener.heard) == 2)
        assert listener.heard == [(TOPICS.availability, b"online", False), (SOURCE_STATE, b"online", False)]
        assert ours.problem == ""
        assert retained(broker.port, TOPICS.availability) == b"online"


async def test_who_leaves_says_so_last_and_the_will_stays_unsent(broker: Broker, listener: Listener) -> None:
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        ours.state(TOPICS.health, b"{}")
        await until("all is said", lambda: len(listener.heard) == 3)
    await until("the goodbyes arrive", lambda: len(listener.heard) >= 5)
    await asyncio.to_thread(retained, broker.port, "a/topic/nobody/uses")  # time for a will to come as well
    assert listener.heard[3:] == [(SOURCE_STATE, b"offline", False), (TOPICS.availability, b"offline", False)]
    assert retained(broker.port, TOPICS.availability) == b"offline"


CHILD = """\
import asyncio, sys
from edge_daemon.config import MqttConfig
from edge_daemon.mqtt import Connection
from edge_daemon.topics import Topics
async def main():
    connection = Connection(MqttConfig(host="127.0.0.1", port=int(sys.argv[1])), Topics("edge-daemon", "test"), print)
    connection.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_who_is_killed_leaves_a_will(broker: Broker, listener: Listener) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(broker.port), stdout=subprocess.DEVNULL
    )
    await until("the child is online", lambda: listener.on(TOPICS.availability) == [b"online"])
    child.kill()
    await child.wait()
    await until("its will is read", lambda: listener.on(TOPICS.availability) == [b"online", b"offline"])
    assert retained(broker.port, TOPICS.availability) == b"offline"


async def test_state_is_said_again_to_a_broker_that_forgot_everything(broker: Broker, tmp_path: Path) -> None:
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        ours.state(TOPICS.health, b"before")
        await until("connected", ours.connected.is_set)
        broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        ours.state(TOPICS.health, b"meanwhile")
        ours.state(TOPICS.health, b"latest")
        (tmp_path / "broker" / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        await until("connected again", ours.connected.is_set)
        await until("all is confirmed", lambda: not ours._unconfirmed)
        assert retained(broker.port, TOPICS.availability) == b"online"
        assert retained(broker.port, SOURCE_STATE) == b"online"
        assert retained(broker.port, TOPICS.health) == b"latest"


async def test_state_that_did_not_arrive_does_not_overtake_what_came_later(broker: Broker) -> None:
    """Sent to a broker that no longer reads; then the broker is replaced."""
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            ours.state(TOPICS.health, b"old")
            broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        ours.state(TOPICS.health, b"new")
        broker.start()
        watcher = Listener(broker.port)
        await until("it is said", lambda: watcher.on(TOPICS.health))
        await until("all is confirmed", lambda: not ours._unconfirmed)
        assert set(watcher.on(TOPICS.health)) == {b"new"}
        assert retained(broker.port, TOPICS.health) == b"new"
        watcher.stop()


async def test_the_same_state_is_not_said_twice(broker: Broker, listener: Listener) -> None:
    async with connection(broker.port) as ours:
        await until("connected", lambda: len(listener.heard) == 1)
        for payload in (b"a", b"a", b"b", b"b", b"a"):
            ours.state(TOPICS.health, payload)
        await until("the last is heard", lambda: len(listener.on(TOPICS.health)) == 3)
    assert listener.on(TOPICS.health) == [b"a", b"b", b"a"]


# ---- results --------------------------------------------------------------------------------------------


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


@contextmanager
def frozen(broker: Broker) -> Iterator[None]:
    """The broker holds its connections and reads nothing, as behind a cut network."""
    process = broker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


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


# ---- what can be wrong ----------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[int]:
    """The port of a mosquitto that wants a password."""
    program, passwords = find_mosquitto(), shutil.which("mosquitto_passwd")
    if program is None or passwords is None:
        missing("mosquitto")
    subprocess.run([passwords, "-b", "-c", str(tmp_path / "passwords"), "cam", "right"], check=True)
    os.chmod(tmp_path, 0o755)
    os.chmod(tmp_path / "passwords", 0o600)
    port = free_port()
    user = "user root\n" if os.geteuid() == 0 else ""
    (tmp_path / "guarded.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {tmp_path}/passwords\n{user}"
    )
    process = subprocess.Popen([program, "-c", str(tmp_path / "guarded.conf")], stderr=subprocess.DEVNULL)
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        assert process.poll() is None
    yield port
    process.terminate()
    process.wait()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "edge_daemon.mqtt" and record.levelno > 20]


@pytest.mark.parametrize(
    "login",
    [{}, {"username": "cam"}, {"username": "cam", "password": SecretStr("wrong")}],
    ids=["none", "name", "wrong"],
)
async def test_a_broker_that_refuses_us_is_told_once(
    guarded: int, caplog: pytest.LogCaptureFixture, login: dict[str, Any]
) -> None:
    async with connection(guarded, **login) as ours:
        await until("it was refused", lambda: "refuses" in ours.problem)
        refusals = count_calls(ours._client, "on_disconnect")
        await until("it was tried again", lambda: refusals)
        assert not ours.connected.is_set()
        assert not ours.died.done()
        assert ours.problem == f"the broker 127.0.0.1:{guarded} refuses us: Not authorized"
    assert warnings(caplog) == [f"{ours.problem}; results are kept until it is back"]


def count_calls(client: paho.Client, name: str) -> list[None]:
    """A list that grows with every call of one of paho's callbacks, which is called as before."""
    calls: list[None] = []
    callback = getattr(client, name)

    def counted(*arguments: Any) -> None:
        callback(*arguments)
        calls.append(None)

    setattr(client, name, counted)
    return calls


async def test_the_right_password_opens(guarded: int, caplog: pytest.LogCaptureFixture) -> None:
    async with connection(guarded, username="cam", password=SecretStr("right")) as ours:
        await until("connected", ours.connected.is_set)
    assert warnings(caplog) == []


async def test_nobody_listens_and_then_somebody_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if find_mosquitto() is None:
        missing("mosquitto")
    caplog.set_level(logging.INFO)
    broker = Broker(tmp_path)
    async with connection(broker.port) as ours:
        await until("it was tried", lambda: ours.problem == f"the broker 127.0.0.1:{broker.port} cannot be reached")
        failures = count_calls(ours._client, "on_connect_fail")
        await until("it was tried again", lambda: failures)
        with broker:
            await until("connected", ours.connected.is_set)
            assert ours.problem == ""
        await until("the loss is noticed", lambda: not ours.connected.is_set())
    assert [message.partition(":")[0] for message in warnings(caplog)] == ["the broker 127.0.0.1"] * 2
    assert "cannot be reached" in warnings(caplog)[0]
    assert "is gone" in warnings(caplog)[1]


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46"])
async def test_another_service_on_that_port_is_told_once(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs up, speaks HTTP, or wants TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(100)
            writer.write(greeting)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connection(port) as ours:
        await until("it was tried", lambda: "does not answer" in ours.problem)
        ends = count_calls(ours._client, "on_disconnect")
        await until("it was tried again", lambda: ends)
        assert not ours.died.done()
    assert warnings(caplog) == [
        f"what listens on 127.0.0.1:{port} does not answer as a broker does (is it the port without TLS?); "
        "results are kept until it is back"
    ]


async def test_the_end_of_the_network_thread_is_noticed(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        ours._client.disconnect()  # ends the thread as only `stop` may
        with pytest.raises(RuntimeError, match="MQTT thread ended unexpectedly"):
            await asyncio.wait_for(ours.died, LONG_S)


async def test_an_error_in_the_network_thread_is_noticed() -> None:
    config = MqttConfig.model_construct(**{**MqttConfig().model_dump(), "host": "a..b"})  # no name can be so
    ours = Connection(config, TOPICS, lambda: None)
    ours.start()
    with pytest.raises(RuntimeError, match="MQTT thread ended unexpectedly: UnicodeError"):
        await asyncio.wait_for(ours.died, LONG_S)
    await ours.stop()


async def test_stopping_does_not_wait_for_a_broker_that_is_not_there() -> None:
    async with connection(free_port()) as ours:
        await until("it was tried", lambda: "cannot be reached" in ours.problem)


async def test_stopping_does_not_wait_for_a_frozen_broker(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        process = broker._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)


async def test_reconnects_leave_no_descriptor_open(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(2):
            broker.stop(kill=True)
            await until("the loss is noticed", lambda: not ours.connected.is_set())
            broker.start()
            await until("connected again", ours.connected.is_set)
        assert sorted(os.listdir("/proc/self/fd")) == before
