"""The connection to the broker.

paho runs in one thread of ours; its callbacks only hand over to the event loop. Retained state
(availability, health) is not queued: the latest of each topic is sent again on every connect. Knows nothing
of results: the publisher sends those.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge_daemon.config import MqttConfig
from edge_daemon.topics import OFFLINE, ONLINE, Publication, Topics

RECONNECT_FIRST_S, RECONNECT_LONGEST_S = 1, 30
CONFIRM_S = 3.0
"""How long a clean goodbye may take."""
log = logging.getLogger(__name__)


class Connection:
    """One client of one broker, for the life of the daemon. Use it from the event loop's thread only."""

    def __init__(self, config: MqttConfig, topics: Topics, on_change: Callable[[], None]) -> None:
        self.config = config
        self.topics = topics
        self.connected = asyncio.Event()
        self.sessions = 0
        """How often a broker has taken us: what was on its way in an earlier session must be sent again."""
        self.problem = "not connected yet"
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when the network thread ends though nobody asked it to."""
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._state: dict[str, bytes] = {}
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self._stopping = False
        self._answered = False
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self.config.client_id or f"edge-daemon-{self.topics.node}"
        )
        if self.config.username is not None:
            password = self.config.password
            client.username_pw_set(self.config.username, password.get_secret_value() if password else None)
        client.will_set(self.topics.availability, OFFLINE, qos=1, retain=True)
        client.reconnect_delay_set(RECONNECT_FIRST_S, RECONNECT_LONGEST_S)
        client.on_connect = lambda c, u, flags, reason, props: self._hand_over(self._connected, reason)
        client.on_pre_connect = _forget
        client.on_connect_fail = lambda c, u: self._hand_over(self._unreachable)
        client.on_disconnect = lambda c, u, flags, reason, props: self._hand_over(self._disconnected, reason)
        client.on_publish = lambda c, u, mid, reason, props: self._hand_over(self._confirmed, mid)
        client.connect_async(self.config.host, self.config.port, self.config.keepalive_s)
        return client

    def start(self) -> None:
        """Connect in the background, for ever; a missing broker is not an error."""
        self._thread.start()

    def state(self, topic: str, payload: bytes) -> None:
        """Set a retained topic; sent now if connected, and again on every connect."""
        if self._state.get(topic) != payload:
            self._state[topic] = payload
            if self.connected.is_set():
                self.publish(Publication(topic, payload, retain=True))

    def publish(self, message: Publication) -> asyncio.Future[None]:
        """Send with QoS 1; the future is done when the broker has confirmed, cancelled when the connection broke."""
        info = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        future = self._loop.create_future()
        self._unconfirmed[info.mid] = future
        return future

    async def stop(self) -> None:
        """Say `offline`, wait a moment for the broker to confirm, and leave cleanly: the will stays unsent."""
        if self.connected.is_set():
            goodbyes = [self.publish(Publication(t, OFFLINE, retain=True)) for t in self._goodbye_topics()]
            await asyncio.wait(goodbyes, timeout=CONFIRM_S)
        self._stopping = True
        self._client.disconnect()
        await asyncio.to_thread(self._thread.join, CONFIRM_S)

    def _goodbye_topics(self) -> list[str]:
        """Availability of the sources first, of the node last."""
        sources = [t for t in self._state if t.endswith("/availability") and t != self.topics.availability]
        return [*sources, self.topics.availability]

    def _run(self) -> None:
        """The network thread."""
        error: BaseException | None = None
        try:
            self._client.loop_forever(retry_first_connection=True)
        except Exception as caught:  # noqa: BLE001  whatever ends this thread must reach the daemon, which then ends too
            error = caught
        if not self._stopping:
            self._hand_over(self._thread_died, error)

    def _hand_over(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback in the event loop; after its end there is nobody to tell."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _thread_died(self, error: BaseException | None) -> None:
        if not self.died.done():
            self.died.set_exception(RuntimeError(f"the MQTT thread ended unexpectedly: {error!r}"))

    def _connected(self, reason: ReasonCode) -> None:
        self._answered = True
        if self._stopping:  # it was just connecting when `stop` was called
            self._client.disconnect()
            return
        if reason.is_failure:
            self._say(f"the broker {self._address} refuses us: {reason}")
            return
        log.info("connected to the broker %s", self._address)
        self.problem = ""
        self.sessions += 1
        self.connected.set()
        self.publish(Publication(self.topics.availability, ONLINE, retain=True))
        for topic, payload in self._state.items():
            self.publish(Publication(topic, payload, retain=True))
        self._on_change()

    def _disconnected(self, reason: ReasonCode) -> None:
        was_connected, answered, self._answered = self.connected.is_set(), self._answered, False
        self.connected.clear()
        for future in self._unconfirmed.values():
            future.cancel()
        self._unconfirmed.clear()
        if was_connected and not self._stopping:
            self._say(f"the broker {self._address} is gone: {reason}")
        elif not answered and not self._stopping:
            self._say(f"what listens on {self._address} does not answer as a broker does (is it the port without TLS?)")

    def _unreachable(self) -> None:
        self._say(f"the broker {self._address} cannot be reached")

    def _say(self, problem: str) -> None:
        """Log a problem when it is news; results wait in the outbox meanwhile."""
        if problem != self.problem:
            log.warning("%s; results are kept until it is back", problem)
            self.problem = problem
            self._on_change()

    def _confirmed(self, mid: int) -> None:
        future = self._unconfirmed.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(None)

    @property
    def _address(self) -> str:
        return f"{self.config.host}:{self.config.port}"


def _forget(client: paho.Client, _: object) -> None:
    """What was not confirmed is ours to send again after a reconnect, from the outbox and the retained state."""
    client.drop_out_messages()
