"""A connection of ours, and a subscriber that misses nothing: for the tests of the connection and the publisher."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_daemon.demo.broker import Broker, find_mosquitto, free_port
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import MqttConfig
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


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the connection has warned of."""
    ours = ("edge_daemon.mqtt", "edge_daemon.complaints")
    return [record.message for record in caplog.records if record.name in ours and record.levelno > logging.INFO]


def catch_up(client: paho.Client) -> None:
    """Hear all that the broker has had for a subscriber until now: it answers in order, and has kept nothing of `/`."""
    answered = threading.Event()
    client.on_unsubscribe = lambda *_: answered.set()
    client.unsubscribe("/")
    assert answered.wait(LONG_S)


class Listener:
    """A subscriber whose session the broker keeps, so that it misses nothing while the broker restarts."""

    def __init__(self, port: int, topic: str = "#", client_id: str = "listener") -> None:
        """Without a `client_id` it is a newcomer, and nothing is kept of it."""
        self.heard: list[tuple[str, bytes, bool]] = []
        """Topic, payload, and whether it was retained."""
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=not client_id)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _c, _u, m: self.heard.append((m.topic, bytes(m.payload), m.retain))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(LONG_S)

    def again(self) -> None:
        """Count on no subscription of before."""
        self._subscribed.clear()

    def listens(self) -> bool:
        return self._subscribed.is_set()

    def catch_up(self) -> None:
        """Hear all that the broker has had until now."""
        catch_up(self._client)

    def on(self, topic: str) -> list[bytes]:
        return [payload for heard, payload, _ in self.heard if heard == topic]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.on(EVENT)]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def retained(port: int, topic: str) -> bytes | None:
    """What a newcomer hears first, or None."""
    newcomer = Listener(port, topic, client_id="")
    newcomer.catch_up()
    newcomer.stop()
    return next((payload for _, payload, _ in newcomer.heard), None)


def count_calls(ours: object, name: str) -> list[None]:
    """A list that grows with every call of a method, which is called as before."""
    calls: list[None] = []
    callback = getattr(ours, name)

    def counted(*arguments: Any) -> Any:
        answer = callback(*arguments)
        calls.append(None)
        return answer

    setattr(ours, name, counted)
    return calls


@asynccontextmanager
async def connection(port: int, **options: Any) -> AsyncIterator[Connection]:
    """A started connection; stopped afterwards."""
    made = Connection(MqttConfig(**{"host": "127.0.0.1", "port": port, **options}), TOPICS, lambda: None)
    made.start()
    try:
        yield made
    finally:
        await made.stop()
        assert made._visit is not None
        assert not made._visit.link._thread.is_alive()


@contextmanager
def frozen(broker: Broker) -> Iterator[None]:
    """The broker holds its connections and reads nothing, as behind a cut network."""
    process = process_of(broker.port)
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):  # it was killed as it was
            process.resume()


@contextmanager
def mosquitto(directory: Path, settings: str, port: int = 0) -> Iterator[int]:
    """A broker with settings of its own; its port."""
    program = find_mosquitto()
    if program is None:
        missing("mosquitto")
    port = port or free_port()
    anonymous = "" if "allow_anonymous" in settings else "allow_anonymous true\n"
    user = "user root\n" if os.geteuid() == 0 else ""
    (directory / "own.conf").write_text(f"listener {port} 127.0.0.1\n{settings}\n{anonymous}{user}\n")
    process = subprocess.Popen([program, "-c", str(directory / "own.conf")], stderr=subprocess.DEVNULL)
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        assert process.poll() is None
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def process_of(port: int) -> psutil.Process:
    """Whom of our children a port belongs to."""
    for child in psutil.Process().children():
        if any(there.laddr and there.laddr.port == port for there in child.net_connections()):
            return child
    raise AssertionError(f"nobody listens on {port}")
