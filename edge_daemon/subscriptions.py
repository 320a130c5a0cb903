"""What we listen to at the broker, and who is told what comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paho.mqtt.client import topic_matches_sub

from edge_daemon.link import Link, Reason
from edge_daemon.topics import Incoming

log = logging.getLogger(__name__)
OnMessage = Callable[[Incoming], None]


@dataclass
class Subscriptions:
    """All of them, over all links."""

    _all: list[tuple[Sequence[str], OnMessage]] = field(default_factory=list)
    _asked: dict[int, Sequence[str]] = field(default_factory=dict)
    """Those that the broker has not answered yet."""

    def add(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Whatever comes for one of these topics (with `+` and `#`) is for `on_message`."""
        self._all.append((topics, on_message))

    def ask_for_all(self, link: Link) -> None:
        """At a broker that knows nothing of us."""
        self._asked.clear()
        for topics, _ in self._all:
            self.ask(link, topics)

    def ask(self, link: Link, topics: Sequence[str]) -> None:
        """Have the broker send us what comes for them."""
        number = link.subscribe(topics)
        if number is not None:
            self._asked[number] = topics

    def answered(self, number: int, answers: Sequence[Reason]) -> tuple[list[str], list[str], Reason | None]:
        """The broker has answered: which topics we may listen to, which we may not, and why the first of those."""
        answered = list(zip(self._asked.pop(number, ()), answers, strict=False))
        refused = [(topic, reason) for topic, reason in answered if reason.is_failure]
        granted = [topic for topic, reason in answered if not reason.is_failure]
        return granted, [topic for topic, _ in refused], refused[0][1] if refused else None

    def arrived(self, message: Incoming) -> None:
        """Pass it on. An error that comes of it is a bug: it is logged, and hurts nothing else."""
        for topics, on_message in self._all:
            if any(topic_matches_sub(topic, message.topic) for topic in topics):
                try:
                    on_message(message)
                except Exception:
                    log.exception("a message on %s caused an internal error; please report it", message.topic)
