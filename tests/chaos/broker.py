"""The broker, and a subscriber whose session it keeps: what it hears is compared with what the broker confirmed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_daemon.demo.broker import Broker

SUBSCRIBED_S = 30.0


class KeptBroker(Broker):
    """mosquitto, which can also forget everything."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        super().__init__(directory)
        self.memory = directory / "mosquitto.db"

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0


class Subscriber:
    """Subscribes to everything of a node, with QoS 1 and a session that outlives its connections."""

    def __init__(self, port: int, base: str, clock: Callable[[], float]) -> None:
        self.ids: set[str] = set()
        self.deaf: list[tuple[float, float]] = []
        self._clock = clock
        self._deaf_since_s: float | None = None
        self._lock = threading.Lock()
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="witness", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{base}/#", qos=1)
        self._client.on_subscribe = lambda *_: self._hears()
        self._client.on_message = lambda _client, _data, message: self._message(message)
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()

    def wait(self) -> None:
        """Until it is subscribed for the first time."""
        assert self._subscribed.wait(SUBSCRIBED_S), "the broker takes no subscription"

    def broker_dies(self) -> None:
        """From now on until it is subscribed again, what the broker confirms may be lost with it."""
        with self._lock:
            self._subscribed.clear()
            if self._deaf_since_s is None:
                self._deaf_since_s = self._clock()

    def stop(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _hears(self) -> None:
        with self._lock:
            self._subscribed.set()
            if self._deaf_since_s is not None:
                self.deaf.append((self._deaf_since_s, self._clock()))
                self._deaf_since_s = None

    def _message(self, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/event"):
            self.ids.add(json.loads(message.payload)["id"])


def retained(port: int, base: str) -> dict[str, str]:
    """What a newcomer hears, by topic below the base. Blocks for a moment."""
    heard: dict[str, str] = {}
    end = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain:
            heard[message.topic.removeprefix(f"{base}/")] = message.payload.decode(errors="replace")
        elif message.topic == f"{base}-end":
            end.set()  # it came through the same queue, behind all that was retained

    client.on_message = on_message
    client.on_subscribe = lambda c, *_: c.publish(f"{base}-end", b"", qos=1)
    client.on_connect = lambda c, *_: c.subscribe([(f"{base}/#", 1), (f"{base}-end", 1)])
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert end.wait(SUBSCRIBED_S), "the broker does not answer"
        time.sleep(0.1)
    finally:
        client.disconnect()
        client.loop_stop()
    return heard
