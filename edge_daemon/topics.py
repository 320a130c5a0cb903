"""The topics, and which messages one result becomes. Pure: knows names and documents, no connection.

The layout is a promise (README, "Topics"); nothing else in the program spells a topic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edge_daemon.units import DAY_S

ONLINE, OFFLINE = b"online", b"offline"
"""Home Assistant's default payloads for availability."""
JSON, TEXT = "application/json", "text/plain; charset=utf-8"
EVENT_EXPIRY_S = int(7 * DAY_S)
"""A broker that keeps events for a subscriber who is away need not keep them for ever; the outbox does not either.

What is retained does not expire: availability says whether it is still the truth."""
LARGEST_INCOMING_BYTES = 6 << 20
"""More than a picture in base64 that a command may bring."""


@dataclass(frozen=True)
class Publication:
    """One message for the broker. What follows `qos` goes with it where the connection speaks MQTT 5."""

    topic: str
    payload: bytes
    retain: bool
    qos: int = 1
    content_type: str = ""
    expiry_s: int | None = None
    """The broker forgets it after so long, if it could not deliver it before."""
    correlation: bytes | None = None
    """Of the request that this answers."""
    user: tuple[tuple[str, str], ...] = ()
    """User properties."""
    once: bool = False
    """Nobody sends it again when the broker does not take it."""


@dataclass(frozen=True)
class Incoming:
    """One message from the broker."""

    topic: str
    payload: bytes
    """At most LARGEST_INCOMING_BYTES, so one byte more than any command may have: the rest was cut off."""
    retain: bool
    """The broker had kept it; with MQTT 5 also: it is to be kept."""
    response_topic: str = ""
    """Where the answer is wanted as well (MQTT 5); empty: nowhere else."""
    correlation: bytes | None = None
    """To be sent with that answer."""


@dataclass(frozen=True)
class Topics:
    """All topics of one node."""

    base: str
    node: str

    @property
    def availability(self) -> str:
        """Says online or offline; also the last will."""
        return f"{self.base}/{self.node}/availability"

    @property
    def health(self) -> str:
        """What state the daemon is in."""
        return f"{self.base}/{self.node}/health"

    def of(self, source: str, what: str) -> str:
        """A topic of one source."""
        return f"{self.base}/{self.node}/{source}/{what}"

    def set(self, source: str, setting: str) -> str:
        """Where a setting of a source is changed: `enabled`, `interval`, and `question`, which asks it once."""
        return self.of(source, f"{setting}/set")

    def state(self, source: str, setting: str) -> str:
        """What holds for a setting of a source."""
        return self.of(source, f"{setting}/state")

    def asked(self, source: str) -> str:
        """The answer to the question that was set; configured questions have topics of their own."""
        return self.of(source, "question/answer")

    def image(self, source: str) -> str:
        """The picture that was captioned last, a JPEG, where that is wished."""
        return self.of(source, "image")

    def trigger(self, source: str) -> str:
        """Whatever is written here asks for a caption now."""
        return self.of(source, "trigger")

    def request(self, command: str) -> str:
        """Where a command is given."""
        return f"{self.base}/{self.node}/request/{command}"

    def response(self, command: str) -> str:
        """Where every command is answered; a topic that the request names (MQTT 5) gets the answer as well."""
        return f"{self.base}/{self.node}/response/{command}"

    @property
    def incoming(self) -> list[str]:
        """What to subscribe to for all commands and settings; nothing that we publish is among it."""
        return [self.request("+"), self.trigger("+"), self.set("+", "+")]

    def retained(self, source: str, answers: Iterable[str], *, caption: bool, image: bool) -> list[str]:
        """All topics that a source with these answers retains."""
        whats = ["availability", "enabled/state", "interval/state", "question/state", "question/answer"]
        whats += ["caption", "caption/text"] if caption else []
        whats += ["image"] if image else []
        return [self.of(source, what) for what in [*whats, *(f"answer/{name}" for name in answers)]]

    def is_result(self, topic: str) -> bool:
        """Whether it holds what is said about a picture of a source, or the picture."""
        _, what = self.addressed(topic) or ("", "")
        return what.partition("/")[0] in ("caption", "answer", "image")

    def addressed(self, topic: str) -> tuple[str, str] | None:
        """Behind the node: ("request", command), (source, "trigger"), (source, "enabled/set"); None: not ours."""
        start = f"{self.base}/{self.node}/"
        first, slash, rest = topic.removeprefix(start).partition("/")
        return (first, rest) if topic.startswith(start) and slash and first and rest else None


def discovery(prefix: str, device_id: str) -> str:
    """Where Home Assistant is told what there is; nothing else may be published below the prefix."""
    return f"{prefix}/device/{device_id}/config"


def home_assistant_status(prefix: str) -> str:
    """Where Home Assistant says `online` when it has started, and then wants to be told again."""
    return f"{prefix}/status"


def publications(topics: Topics, source: str, result: dict[str, Any]) -> list[Publication]:
    """The messages of one result, in the order in which they are sent."""
    body = json_bytes(result)
    user = tuple((key, json.dumps(result[key]).strip('"')) for key in ("schema", "model", "replayed") if key in result)

    def message(what: str, retain: bool = True, expiry_s: int | None = None) -> Publication:
        return Publication(topics.of(source, what), body, retain, content_type=JSON, expiry_s=expiry_s, user=user)

    event = message("event", retain=False, expiry_s=EVENT_EXPIRY_S)
    if "caption" not in result:
        return [event, message(f"answer/{result['task']}")]
    words = result["caption"].encode(errors="replace")
    text = Publication(topics.of(source, "caption/text"), words, retain=True, content_type=TEXT, user=user)
    return [event, message("caption"), text]


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON payload; file names that are not valid UTF-8 become escapes, never an error."""
    return json.dumps(document, ensure_ascii=True).encode("ascii")
