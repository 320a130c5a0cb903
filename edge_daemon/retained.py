"""What stands at the broker: of each retained topic the latest, which is said again on every connect. Pure.

It is not queued: whoever comes late wants the latest alone. A topic that the broker does not take is left alone for a
while.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_daemon.topics import JSON, ONLINE, Publication, Topics

AVAILABILITY = "/availability"


class Retained:
    """All retained topics of one node, but for those of results."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._node = topics.availability
        self._latest = {self._node: Publication(self._node, ONLINE, retain=True)}
        self._put_off_until_s: dict[str, float] = {}
        self._wished: frozenset[str] | None = None

    def set(self, topic: str, payload: bytes, qos: int) -> Publication | None:
        """The message, if it is news."""
        message = Publication(topic, payload, True, qos, content_type=JSON if payload.startswith(b"{") else "")
        if not self.may(topic) or self._latest.get(topic) == message:
            return None
        self._latest[topic] = message
        return message

    def limit(self, wished: frozenset[str]) -> None:
        """Retain no results but these, whenever they were made; what there is of others is forgotten."""
        self._wished = wished
        self._latest = {topic: message for topic, message in self._latest.items() if self.may(topic)}

    def may(self, topic: str) -> bool:
        """Whether a topic may be retained."""
        return self._wished is None or topic in self._wished or not self._topics.is_result(topic)

    def due(self, now_s: float, *, node_first: bool = False) -> list[Publication]:
        """What can be said now; that the node is here last, when it is said what is true of its sources."""
        due = [message for topic, message in self._latest.items() if self.is_due(topic, now_s)]
        return sorted(due, key=lambda message: (message.topic == self._node) is not node_first)

    def get(self, topic: str) -> Publication | None:
        """The latest of a topic."""
        return self._latest.get(topic)

    def is_due(self, topic: str, now_s: float) -> bool:
        """Whether the broker may take it."""
        return now_s >= self._put_off_until_s.get(topic, 0.0)

    def put_off(self, topic: str, until_s: float) -> bool:
        """The broker does not take it before; whether it is one of these topics."""
        if topic in self._latest:
            self._put_off_until_s[topic] = until_s
        return topic in self._latest

    def another_broker(self) -> None:
        """It may take what the last one did not."""
        self._put_off_until_s.clear()

    def availability(self) -> Iterator[str]:
        """Topics that say whether something is there: the sources first, the node last."""
        yield from (topic for topic in self._latest if topic.endswith(AVAILABILITY) and topic != self._node)
        yield self._node
