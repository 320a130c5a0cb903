"""The connection to the broker.

paho runs in one thread of ours; its callbacks only hand over to the event loop. Retained state
(availability, health) is not queued: the latest of each topic is sent again on every connect. Knows nothing
of results: the publisher sends those.

Whatever is wrong is told once, in words that say what to change, and stands in `problem` until it is over.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge_daemon import reasons
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outgoing import Outgoing
from edge_daemon.suspicion import LONGEST_DELAY_S, SHORT_S
from edge_daemon.topics import LARGEST_INCOMING_BYTES, OFFLINE, ONLINE, Incoming, Publication, Topics

RECONNECT_FIRST_S = 1
ANSWER_S = 30.0
"""A broker that owes an answer (to CONNECT, to messages) and gives none for so long is hung up on.

paho's own deadline is keepalive_s, up to an hour, and knows nothing of messages that are never confirmed."""
REFUSED_S = 3600.0
"""After so long a topic that the broker refused is tried again: its owner may have changed its settings."""
CONFIRM_S = 3.0
"""How long a clean goodbye may take."""
INCOMING_AT_ONCE = 4
"""Messages that wait for the event loop; each may be as long as a picture."""
MALFORMED, KEEPALIVE = 130, 141
"""Reason codes that paho makes up: what came was no MQTT; nothing came."""
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
        self._told: set[str] = set()
        """Problems that stand in the log since all was well."""
        self.refused = 0
        """Messages that the broker will never take."""
        self.last_refused = ""
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._subscriptions: list[tuple[Sequence[str], Callable[[Incoming], None]]] = []
        self._state: dict[str, bytes] = {}
        self._refused_until_s: dict[str, float] = {}
        """Retained topics that the broker does not take."""
        self.outgoing = Outgoing(self._send)
        self._suspicion = self.outgoing.suspicion
        self._timer: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._room = threading.Semaphore(INCOMING_AT_ONCE)
        self._answered = False
        self._hung_up_for = ""
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def _make_client(self) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self.client_id)
        if self.config.username is not None:
            password = self.config.password
            client.username_pw_set(self.config.username, password.get_secret_value() if password else None)
        client.will_set(self.topics.availability, OFFLINE, qos=1, retain=True)
        client.reconnect_delay_set(RECONNECT_FIRST_S, LONGEST_DELAY_S)
        client.on_connect = lambda c, u, flags, reason, props: self._hand_over(self._connected, reason)
        client.on_pre_connect = _forget
        client.on_socket_open = lambda c, u, sock: self._hand_over(self._await_answer)
        client.on_connect_fail = lambda c, u: self._hand_over(self._unreachable, sys.exception())
        client.on_disconnect = lambda c, u, flags, reason, props: self._hand_over(self._disconnected, reason)
        client.on_message = lambda c, u, message: self._take(message)
        client.on_publish = lambda c, u, mid, reason, props: self._hand_over(self._confirmed, mid, reason)
        return client

    @property
    def client_id(self) -> str:
        """Our name at the broker."""
        return self.config.client_id or f"edge-daemon-{self.topics.node}"

    def start(self) -> None:
        """Connect in the background, for ever; a missing broker is not an error."""
        self._thread.start()

    def state(self, topic: str, payload: bytes) -> None:
        """Set a retained topic; sent now if connected, and again on every connect."""
        if self._state.get(topic) != payload:
            self._state[topic] = payload
            if self.connected.is_set():
                self._publish_state(topic, payload)

    def subscribe(self, topics: Sequence[str], on_message: Callable[[Incoming], None]) -> None:
        """Have every message of these topics (with `+` and `#`), now and on every connect, in the event loop.

        An error that `on_message` raises is a bug: it is logged, and nothing else comes of it.
        """
        self._subscriptions.append((topics, on_message))
        if self.connected.is_set():
            self._client.subscribe([(topic, 1) for topic in topics])

    def _arrived(self, message: Incoming) -> None:
        self._room.release()
        for topics, on_message in self._subscriptions:
            if any(paho.topic_matches_sub(topic, message.topic) for topic in topics):
                try:
                    on_message(message)
                except Exception:
                    log.exception("what came on %s led to an error, a bug to report", message.topic)

    def _publish_state(self, topic: str, payload: bytes) -> None:
        if time.monotonic() >= self._refused_until_s.get(topic, 0.0):
            self.publish(Publication(topic, payload, retain=True))

    def publish(self, message: Publication) -> asyncio.Future[None]:
        """Send with QoS 1; the future is done when the broker has confirmed, cancelled when the connection broke.

        It fails with PublishRefused when the broker will never take this message.
        """
        future = self.outgoing.add(message)
        if self._timer is None:
            self._await_answer()
        return future

    def _send(self, message: Publication) -> int:
        return self._client.publish(message.topic, message.payload, qos=1, retain=message.retain).mid

    async def stop(self) -> None:
        """Say `offline`, wait a moment for the broker to confirm, and leave cleanly: the will stays unsent."""
        if self.connected.is_set():
            goodbyes = [self.publish(Publication(t, OFFLINE, retain=True)) for t in self._goodbye_topics()]
            await asyncio.wait(goodbyes, timeout=CONFIRM_S)
        self._stopping.set()
        self._stop_timer()
        self._client.disconnect()
        await asyncio.to_thread(self._thread.join, CONFIRM_S)

    def _goodbye_topics(self) -> list[str]:
        """Availability of the sources first, of the node last."""
        sources = [t for t in self._state if t.endswith("/availability") and t != self.topics.availability]
        return [*sources, self.topics.availability]

    # ---- the network thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        """Keep the client's loop running. An error in it, whoever made it, ends a connection and not the daemon."""
        delay_s = RECONNECT_FIRST_S
        while not self._stopping.is_set():
            error: BaseException | None = None
            try:
                self._client.connect_async(self.config.host, self.config.port, self.config.keepalive_s)
                self._client.loop_forever(retry_first_connection=True)
            except Exception as caught:  # noqa: BLE001  whatever it is, the daemon must hear of it and go on
                error = caught
            if self._stopping.is_set():
                return
            self._hand_over(self._failed, error)
            self._stopping.wait(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def _hand_over(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback in the event loop; after its end there is nobody to tell."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _take(self, message: paho.MQTTMessage) -> None:
        """Hand a message over; one that comes faster than the loop takes them waits here, and its sender at the broker.

        A topic that is no UTF-8 is nothing that we asked for.
        """
        with suppress(UnicodeDecodeError):
            arrived = Incoming(message.topic, bytes(message.payload[:LARGEST_INCOMING_BYTES]), message.retain)
            if self._room.acquire(timeout=ANSWER_S):
                self._hand_over(self._arrived, arrived)

    # ---- what it hands over ------------------------------------------------------------------------------

    def _connected(self, reason: ReasonCode) -> None:
        self._answered = True
        self._stop_timer()
        if self._stopping.is_set():  # it was just connecting when `stop` was called
            self._client.disconnect()
            return
        if reason.is_failure:
            words = reasons.in_words(reason.value, has_login=self.config.username is not None)
            self._say(f"the broker {self._address} refuses us ({reason}): {words}")
            return
        self._suspicion.connected(time.monotonic())
        if self._suspicion.short_ones < 2:
            self._well()
        else:  # probably it is thrown out again: no news before that is known
            self._calm = self._loop.call_later(SHORT_S, self._well)
        self.sessions += 1
        self.connected.set()
        for topics, _ in self._subscriptions:
            self._client.subscribe([(topic, 1) for topic in topics])
        self._publish_state(self.topics.availability, ONLINE)
        for topic, payload in self._state.items():
            self._publish_state(topic, payload)
        self._on_change()

    def _well(self) -> None:
        log.info("connected to the broker %s", self._address)
        self.problem = ""
        self._told.clear()
        self._on_change()

    def _disconnected(self, reason: ReasonCode) -> None:
        was_connected, answered, hung_up_for = self.connected.is_set(), self._answered, self._hung_up_for
        self._reset()
        if self._stopping.is_set():
            self.outgoing.broke(hung_up=False, refusal="")
        elif was_connected and not hung_up_for and reason.value not in (KEEPALIVE, MALFORMED):
            self._closed()
        elif was_connected or hung_up_for:
            self.outgoing.broke(hung_up=False, refusal="")
            silence = hung_up_for or f"said nothing for {self.config.keepalive_s} s (mqtt.keepalive_s)"
            what = "sent what is no MQTT" if reason.value == MALFORMED else silence
            self._say(f"the broker {self._address} is gone: it {what}")
        elif not answered:
            self._say(f"what listens on {self._address} does not answer as a broker does (is it the port without TLS?)")
        self._client.reconnect_delay_set(self._suspicion.delay_s, LONGEST_DELAY_S)

    def _closed(self) -> None:
        """The broker has closed a connection that worked: it restarts, or does not take a message, or us."""
        refusal = f"each time it came, the broker closed the connection; {reasons.UNTAKEN}"
        broker = f"the broker {self._address}"
        guilty = self.outgoing.broke(hung_up=True, refusal=refusal)
        if guilty is not None:
            self._note_refusal(guilty, refusal)
        elif topic := self._suspicion.unwelcome:
            self._say(f"{broker} closes the connection each time something is sent to {topic}: {reasons.NO_ACCESS}")
        elif self._suspicion.flapping:
            name = f"mqtt.client_id is {self.client_id!r} here"
            self._say(f"{broker} closes the connection again and again: {reasons.ANOTHER_CLIENT} ({name})")
        else:
            self._say(f"{broker} is gone: it closed the connection")

    def _confirmed(self, number: int, reason: ReasonCode) -> None:
        self._stop_timer()
        words = reasons.in_words(reason.value) if reason.is_failure else ""
        refused = self.outgoing.confirmed(number, words)
        if refused is not None:
            self._note_refusal(refused, words)
        if self.outgoing.owed:
            self._await_answer()

    def _note_refusal(self, message: Publication, why: str) -> None:
        """Tell of a message that will not arrive."""
        self.refused += 1
        self.last_refused = f"{len(message.payload)} bytes for {message.topic}: {why}"
        log.warning("the broker %s does not take a message and it is left out: %s", self._address, self.last_refused)
        if message.topic in self._state or message.topic == self.topics.availability:
            self._refused_until_s[message.topic] = time.monotonic() + REFUSED_S
        self._on_change()

    def _unreachable(self, error: BaseException | None) -> None:
        self._suspicion.unreachable()
        self._refused_until_s.clear()  # it may come back with other settings
        self._say(f"the broker {self._address} cannot be reached: {reasons.unreachable(error)}")

    def _failed(self, error: BaseException | None) -> None:
        """The network thread had an error, and begins again."""
        if self.connected.is_set():
            self.outgoing.broke(hung_up=False, refusal="")
        self._reset()
        words = f"{type(error).__name__}: {error}" if error else "it ended by itself"
        if self._say(f"the connection to the broker {self._address} failed in itself, a bug to report: {words}"):
            log.debug("where it failed", exc_info=error)

    def _reset(self) -> None:
        """No connection is there any more."""
        self._stop_timer()
        if self._calm is not None:
            self._calm.cancel()
        self.connected.clear()
        self._answered, self._hung_up_for, self._calm = False, "", None

    # ---- a broker that owes an answer ---------------------------------------------------------------------

    def _await_answer(self) -> None:
        """Hang up unless the broker answers in time; paho's loop then sees the end, and connects again."""
        self._stop_timer()
        self._timer = self._loop.call_later(ANSWER_S, self._hang_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        what = "confirmed no message" if self._answered else "did not answer"
        self._hung_up_for = f"{what} for {ANSWER_S:.0f} s"
        self._timer = None
        ours = self._client.socket()
        if isinstance(ours, socket.socket):
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)

    def _say(self, problem: str) -> bool:
        """Log a problem when it is news; results wait in the outbox meanwhile. Several may come in turn."""
        news = problem not in self._told
        if news:
            log.warning("%s; results are kept meanwhile", problem)
            self._told.add(problem)
        if problem != self.problem:
            self.problem = problem
            self._on_change()
        return news

    @property
    def _address(self) -> str:
        return f"{self.config.host}:{self.config.port}"


def _forget(client: paho.Client, _: object) -> None:
    """What was not confirmed is ours to send again after a reconnect, from the outbox and the retained state."""
    client.drop_out_messages()
