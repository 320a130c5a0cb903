"""What is wrong with the broker: told once, and it stands in `problem` until it is over.

In words that say what to change. Results wait in the outbox meanwhile, so nothing here is more than a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edge_daemon.topics import Publication

MOST_TOLD = 1000
"""Of what stands in the log: whoever sends commands may want answers on any number of topics."""
log = logging.getLogger(__name__)


class Complaints:
    """Those about one broker after the other. Several may come in turn."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.problem = "not connected yet"
        self.refused = 0
        """Messages that no broker has got, nor ever will."""
        self.last_refused = ""
        self._told: set[str] = set()
        """What stands in the log since all was well."""
        self._denied: set[str] = set()
        """Topics whose last message was refused in words, and is sent again."""
        self._unheard: set[str] = set()
        """Topics that we may not listen to."""
        self._on_change = on_change

    def say(self, problem: str, meanwhile: str = "results are kept meanwhile") -> bool:
        """Log a problem when it is news; whether it is."""
        news = problem not in self._told
        if news:
            log.warning("%s; %s", problem, meanwhile)
            self._told.add(problem)
        if problem != self.problem:
            self.problem = problem
            self._on_change()
        return news

    def well(self) -> None:
        """Nothing is wrong any more."""
        self.problem = ""
        self._told.clear()
        self._on_change()

    def another_broker(self) -> None:
        """What was wrong with the last one is over, and nothing is known of this one."""
        self.well()
        self.disconnected()
        self.problem = "not connected yet"

    def disconnected(self) -> None:
        """What was denied is sent again by the next connection."""
        self._denied.clear()
        self._unheard.clear()

    def refuse(self, broker: str, message: Publication, why: str) -> None:
        """A message will not arrive; the next one for the same topic may."""
        self.refused += 1
        self.last_refused = f"{len(message.payload)} bytes for {message.topic}: {why}"
        if (what := f"{message.topic}: {why}") not in self._told and len(self._told) < MOST_TOLD:
            log.warning("the broker %s does not accept a message, so it is left out: %s", broker, self.last_refused)
            self._told.add(what)
        self._on_change()

    def deny(self, broker: str, topic: str, why: str) -> None:
        """The broker does not take what is for a topic, but may so later: told once for all topics."""
        first, count = not self._denied, len(self._denied | {topic})
        self._denied.add(topic)
        others = f" and {count - 1} more" if count > 1 else ""
        problem = f"the broker {broker} does not accept messages for {topic}{others} {why}"
        if first:
            self.say(problem)
        else:
            self.problem = problem

    def deafen(self, broker: str, topics: Sequence[str], why: str) -> None:
        """The broker does not let us listen, but may so later."""
        problem = f"the broker {broker} does not let us subscribe to {', '.join(topics)} {why}"
        self.say(problem, "messages from there are not received")
        self._unheard.update(topics)

    def is_last_allowed(self, topic: str) -> bool:
        """Records that the broker accepted `topic`; True when that was the last topic it refused."""
        return self._is_last(self._denied, [topic])

    def is_last_heard(self, topics: Sequence[str]) -> bool:
        """Records that the broker lets us listen to `topics`; True when they were the last that it refused."""
        return self._is_last(self._unheard, topics)

    def _is_last(self, forbidden: set[str], topics: Sequence[str]) -> bool:
        was_forbidden = not forbidden.isdisjoint(topics)
        forbidden.difference_update(topics)
        return was_forbidden and not self._denied and not self._unheard
