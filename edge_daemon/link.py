"""One connection to a broker, from the attempt to its end: paho's client, in a thread of its own.

Everything that happens is handed over to the event loop, in order, and `ended` comes last. Decides nothing: what to
send, and when to connect again and how, is its owner's. Every link is a new client, which reads the certificates
again, and knows nothing of what an earlier one had sent.

Only the thread touches the socket: OpenSSL's connections do not bear two threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_daemon import tls
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.topics import LARGEST_INCOMING_BYTES, Incoming, Publication
from edge_daemon.units import KIB

INCOMING_AT_ONCE = 4
"""Messages that wait for the event loop; each may be as long as a picture."""
AROUND_INCOMING_BYTES = 64 << 10
"""Topic and properties of such a message."""
HAND_OVER_S = 30.0
LOOK_S = 1.0
"""How often the thread looks whether it is to hang up."""


@dataclass(frozen=True)
class Reason:
    """Why something was refused or ended, with the code of MQTT 5."""

    code: int
    name: str

    @property
    def is_failure(self) -> bool:
        """Whether it is a refusal."""
        return self.code >= 0x80


@dataclass(frozen=True)
class Terms:
    """What the broker takes in this connection; only one of MQTT 5 says so."""

    receive_maximum: int = 65535
    max_packet_bytes: int | None = None

    def check(self, size_bytes: int, own_max_kib: int) -> None:
        """Raise ValueError for a packet that is larger than the broker takes, or we want to send."""
        if self.max_packet_bytes is not None and size_bytes > self.max_packet_bytes:
            words = f"the broker accepts at most {self.max_packet_bytes} bytes; raise max_packet_size in its settings"
            raise ValueError(words)
        if size_bytes > own_max_kib * KIB:
            raise ValueError(f"mqtt.max_packet_kib allows {own_max_kib} KiB")


class Owner(Protocol):
    """Who hears of what happens, in the event loop."""

    def opened(self) -> None:
        """A connection is there; the broker has not answered yet."""

    def answered(self, reason: Reason, terms: Terms) -> None:
        """The broker takes us, or not."""

    def confirmed(self, number: int, reason: Reason) -> None:
        """The broker has a message, or does not take it."""

    def subscribed(self, number: int, reasons: Sequence[Reason]) -> None:
        """For every topic whether we may listen."""

    @property
    def arrived(self) -> Callable[[Incoming], None]:
        """Hears the messages of topics that we listen to."""

    def disconnected(self, reason: Reason, said: bool) -> None:
        """The connection is gone; `said` means that the broker gave this reason."""

    def ended(self, error: Exception | None) -> None:
        """Nothing more will come. `error` is why no connection came about, or a bug."""


class Link:
    """Use it from the event loop's thread only."""

    def __init__(self, config: MqttConfig, client_id: str, will: Publication, version: int, owner: Owner) -> None:
        """`version` is 5, or 4 for MQTT 3.1.1."""
        self.version = version
        self._config = config
        self._news = _News(owner)
        self._to_hang_up = threading.Event()
        self._client = self._make_client(client_id, will)
        self._news.follow(self._client)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def _make_client(self, client_id: str, will: Publication) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion(self.version),
            transport=config.transport,
        )
        if config.transport == "websockets":
            client.ws_set_options(config.websocket_path)
        if config.username is not None:
            client.username_pw_set(config.username, config.password.get_secret_value() if config.password else None)
        client.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain)
        client.on_socket_register_write = lambda c, u, sock: None  # so that `publish` leaves the writing to the thread
        return client

    @property
    def alert(self) -> Exception | None:
        """What TLS had against this connection after it was made: a client certificate is refused only then."""
        return self._news.alert

    def start(self) -> None:
        """Connect in the background."""
        self._thread.start()

    def publish(self, message: Publication) -> int:
        """The number that will be confirmed. Raises ValueError for what MQTT cannot hold."""
        properties = self._properties(message)
        return self._client.publish(message.topic, message.payload, message.qos, message.retain, properties).mid

    def size_bytes(self, message: Publication) -> int:
        """Of the packet, at most."""
        properties = self._properties(message)
        packed = properties.pack() if properties else b""  # type: ignore[no-untyped-call]  # paho has no annotations here
        return 9 + len(message.topic.encode()) + len(message.payload) + len(packed)

    def _properties(self, message: Publication) -> Properties | None:
        if self.version < MQTTProtocolVersion.MQTTv5:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no annotations here
        if message.content_type:
            properties.ContentType = message.content_type
        if message.expiry_s is not None:
            properties.MessageExpiryInterval = message.expiry_s
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.user:
            properties.UserProperty = list(message.user)
        return properties

    def _own_terms(self) -> Properties | None:
        """What we take: paho holds a packet in memory three times, and what is retained comes with every connect."""
        if self.version < MQTTProtocolVersion.MQTTv5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no annotations here
        properties.MaximumPacketSize = LARGEST_INCOMING_BYTES + AROUND_INCOMING_BYTES
        return properties

    def subscribe(self, topics: Sequence[str]) -> int | None:
        """The number that will be answered, None without a connection."""
        if self.version < MQTTProtocolVersion.MQTTv5:
            return self._client.subscribe([(topic, 1) for topic in topics])[1]
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        return self._client.subscribe([(topic, options) for topic in topics])[1]

    def leave(self) -> None:
        """Say goodbye: the will stays unsent."""
        self._client.disconnect()

    def hang_up(self) -> None:
        """End it without a word, within LOOK_S."""
        self._to_hang_up.set()

    async def gone(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; whether it came."""
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    # ---- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._talk()
        except Exception as caught:  # noqa: BLE001  whatever it is, the owner must hear of it
            error = caught
        ours = self._client.socket()
        if ours is not None:
            ours.close()
        self._news.tell("ended", error)

    def _talk(self) -> None:
        config, client = self._config, self._client
        if config.tls.enabled:
            client.tls_set_context(tls.context(config.tls, self._news.note_alert))
        client.connect(config.host, config.port, config.keepalive_s, properties=self._own_terms())
        while not self._to_hang_up.is_set() and client.loop(LOOK_S) == paho.MQTT_ERR_SUCCESS:
            pass


class _News:
    """What a client's callbacks hand over. Apart from Link, so that neither keeps the other and its sockets alive."""

    def __init__(self, owner: Owner) -> None:
        self.alert: Exception | None = None
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(INCOMING_AT_ONCE)

    def follow(self, client: paho.Client) -> None:
        """Have the client tell its news here."""
        tell = self.tell
        client.on_socket_open = lambda c, u, sock: tell("opened")
        client.on_connect = lambda c, u, flags, reason, props: tell("answered", _reason(reason), _terms(props))
        client.on_publish = lambda c, u, mid, reason, props: tell("confirmed", mid, _reason(reason))
        client.on_subscribe = lambda c, u, mid, reasons, props: tell("subscribed", mid, [*map(_reason, reasons)])
        client.on_message = lambda c, u, message: self._take(message)
        client.on_disconnect = lambda c, u, flags, reason, props: tell(
            "disconnected", _reason(reason), flags.is_disconnect_packet_from_server
        )

    def tell(self, what: str, *arguments: Any) -> None:
        """Call this method of the owner in the event loop; after its end there is nobody to tell."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(getattr(self._owner, what), *arguments)

    def note_alert(self, error: Exception) -> None:
        """TLS ends the connection."""
        self.alert = error

    def _take(self, message: paho.MQTTMessage) -> None:
        """Hand a message over; one that comes faster than the loop takes them waits here, and the broker with it.

        A topic that is no UTF-8 is nothing that we asked for.
        """
        with suppress(UnicodeDecodeError, RuntimeError):
            payload, properties = bytes(message.payload[:LARGEST_INCOMING_BYTES]), message.properties
            response_topic = str(getattr(properties, "ResponseTopic", ""))
            correlation = getattr(properties, "CorrelationData", None)
            arrived = Incoming(message.topic, payload, message.retain, response_topic, correlation)
            if self._room.acquire(timeout=HAND_OVER_S):
                self._loop.call_soon_threadsafe(self._arrived, arrived)

    def _arrived(self, message: Incoming) -> None:
        self._room.release()
        self._owner.arrived(message)


def _reason(reason: ReasonCode) -> Reason:
    return Reason(reason.value, str(reason))


def _terms(properties: Properties | None) -> Terms:
    return Terms(
        max(1, getattr(properties, "ReceiveMaximum", Terms.receive_maximum)),
        getattr(properties, "MaximumPacketSize", None),
    )
