"""The real service as its own process, and a subscriber that keeps what it hears: for the tests here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as paho
import psutil
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.listening import catch_up
from tests.integration.promised import broken

NODE = "test"
BASE = f"edge-daemon/{NODE}"
PATIENCE_S = 120.0
T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], timeout_s: float = PATIENCE_S) -> T:
    """Ask until the answer is neither None nor False; fail with `what` when the time is over."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if answer := probe():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


@dataclass(frozen=True)
class Heard:
    """One message."""

    topic: str
    payload: bytes
    retain: bool
    qos: int


@dataclass
class Subscriber:
    """Everything below our node's topic since it subscribed, in order."""

    client: paho.Client
    messages: list[Heard] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    listens: threading.Event = field(default_factory=threading.Event)
    """Set when the broker has taken its subscription."""

    def catch_up(self) -> None:
        """Hear all that the broker has had until now."""
        assert self.listens.wait(PATIENCE_S)
        catch_up(self.client)

    def on(self, topic: str) -> list[Heard]:
        """Messages of one topic, below the node."""
        with self.lock:
            return [m for m in self.messages if m.topic == f"{BASE}/{topic}"]

    def results(self, topic: str = "inbox/event") -> list[dict[str, Any]]:
        """Messages of one topic as JSON."""
        return [json.loads(m.payload) for m in self.on(topic)]

    def last_health(self) -> dict[str, Any] | None:
        """The latest health document."""
        found = self.results("health")
        return found[-1] if found else None


@contextmanager
def subscribed(port: int) -> Iterator[Subscriber]:
    """A subscriber that reconnects by itself. Whatever it hears has to be as promised."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    subscriber = Subscriber(client)
    client.reconnect_delay_set(1, 1)
    client.on_connect = lambda c, *_: c.subscribe(f"{BASE}/#", qos=1)

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        with subscriber.lock:
            subscriber.messages.append(Heard(message.topic, bytes(message.payload), message.retain, message.qos))

    client.on_message = on_message
    client.on_subscribe = lambda *_: subscriber.listens.set()
    client.connect_async("127.0.0.1", port)
    client.loop_start()
    try:
        yield subscriber
    finally:
        client.disconnect()
        client.loop_stop()
    wrong = [words for m in subscriber.messages if (words := broken(m.topic.removeprefix(f"{BASE}/"), m.payload))]
    assert not wrong, wrong[0]


class Service:
    """`edge-daemon run`, on a folder unless told otherwise."""

    def __init__(self, directory: Path, port: int, **changes: Any) -> None:
        """Write a configuration; `changes` replaces sections (`model`, `mqtt`, `sources`) or keys of the source."""
        self.directory = directory
        self.inbox = directory / "inbox"
        self.inbox.mkdir()
        source = {
            "type": "folder",
            "path": str(self.inbox),
            "settle_s": 0.2,
            "rescan_s": 2,
            **changes.get("source", {}),
        }
        config = {
            "node": NODE,
            "log_level": changes.get("log_level", "info"),
            "state_dir": str(directory / "state"),
            "mqtt": {"port": port, **changes.get("mqtt", {})},
            "model": changes.get("model", {}),
            "sources": changes.get("sources", {"inbox": source}),
        }
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log is appended to `service.log`."""
        with (self.directory / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_daemon", "run", "-c", str(self.config)], stderr=log, stdout=log
            )

    def log(self) -> str:
        """All it has logged."""
        return (self.directory / "service.log").read_text(errors="replace")

    def child(self, module: str) -> psutil.Process | None:
        """Its child that runs a module, if there is one."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            if module in child.cmdline():
                return child
        return None

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """Started now; ended and its log shown whatever happens."""
    service.start()
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        print(service.log())
