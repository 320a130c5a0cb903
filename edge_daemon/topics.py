"""The topics, and which messages one result becomes. Pure: knows names and documents, no connection.

The layout is a promise (README, "Topics"); nothing else in the program spells a topic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ONLINE, OFFLINE = b"online", b"offline"
"""Home Assistant's default payloads for availability."""


@dataclass(frozen=True)
class Publication:
    """One message for the broker, QoS 1."""

    topic: str
    payload: bytes
    retain: bool


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


def publications(topics: Topics, source: str, result: dict[str, Any]) -> list[Publication]:
    """The messages of one result, in the order in which they are sent."""
    body = json_bytes(result)
    event = Publication(topics.of(source, "event"), body, retain=False)
    if "caption" in result:
        words = result["caption"].encode()
        return [
            event,
            Publication(topics.of(source, "caption"), body, retain=True),
            Publication(topics.of(source, "caption/text"), words, retain=True),
        ]
    return [event, Publication(topics.of(source, f"answer/{result['task']}"), body, retain=True)]


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON payload; file names that are not valid UTF-8 become escapes, never an error."""
    return json.dumps(document, ensure_ascii=True).encode("ascii")
