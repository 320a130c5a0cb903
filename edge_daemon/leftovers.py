"""What a broker still keeps for us of earlier, and nobody wishes any more: it is taken off.

Such as the answers to a question that is gone, the image of a source that publishes none now, and all topics of a
source that is gone. A broker says what it keeps only to those who may listen to all of it, so we remember: by broker,
in the state directory. A node with another name leaves behind what it had.

The answer to a question that is another one now is taken off as well, at once: later it could be the new one's. So is
what Home Assistant was told on another topic, or what we tell it next would be a second device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edge_daemon import state_file
from edge_daemon.errors import PublishDenied
from edge_daemon.mqtt import Connection
from edge_daemon.topics import Publication

Marks = Mapping[str, str]
"""Topic → what it is about, or nothing: of an answer its question, of Home Assistant's message our availability."""
log = logging.getLogger(__name__)


class Leftovers:
    """The file, and what is done with it."""

    def __init__(self, connection: Connection, path: Path, wished: Callable[[], Marks]) -> None:
        """`wished` gives all topics that are retained, as the sources are now."""
        self._connection = connection
        self._path = path
        self._start = connection.topics.of("", "").rstrip("/") + "/"
        self._wished = wished
        self._kept = self._read()
        """Broker → topics that it may keep."""
        self._tried: dict[str, tuple[int, str]] = {}
        """Topic → in which session, and for which mark, it was emptied at once: one that is refused is no news."""
        self._problem = ""
        self.note()

    def note(self) -> None:
        """Remember what is retained from now on, before it is; to be called when a source or the broker is another."""
        wished = self._wished()
        self._connection.retained.limit(frozenset(wished))
        self._keep({**wished, **{topic: mark for topic, mark in self._here.items() if mark or topic not in wished}})
        other = {topic: mark for topic, mark in wished.items() if self._here[topic] != mark}
        other |= {topic: "" for topic in self._here if topic not in wished and not topic.startswith(self._start)}
        for topic, mark in other.items() if self._connection.connected.is_set() else ():
            attempt = self._connection.sessions, mark
            if self._tried.get(topic) != attempt:
                self._tried[topic] = attempt
                sent = self._connection.publish(Publication(topic, b"", retain=True))
                sent.add_done_callback(partial(self._emptied, topic, mark))

    def _emptied(self, topic: str, mark: str, sent: asyncio.Future[None]) -> None:
        """It is known to be about something else now, or about nothing."""
        if not sent.cancelled() and sent.exception() is None:
            log.info("removed from the broker, as it is something else in the configuration now: %s", topic)
            self._keep({**{t: m for t, m in self._here.items() if t != topic}, **({topic: mark} if mark else {})})

    async def take_off(self) -> bool:
        """Take off what is not wished; whether the broker allows it for now.

        What it does not confirm remains to be taken off.
        """
        self.note()  # it may be another broker
        gone = sorted(self._here.keys() - self._wished().keys())
        sent = {topic: self._connection.publish(Publication(topic, b"", retain=True)) for topic in gone}
        if not sent:
            return True
        await asyncio.wait(sent.values())
        errors = {topic: future.exception() for topic, future in sent.items() if not future.cancelled()}
        done = {topic for topic, error in errors.items() if error is None}
        if done:
            log.info("removed from the broker, as it is no longer in the configuration: %s", ", ".join(sorted(done)))
        again = self._wished()
        self._keep({topic: mark for topic, mark in self._here.items() if topic not in done or topic in again})
        return not any(isinstance(error, PublishDenied) for error in errors.values())

    @property
    def _here(self) -> Marks:
        return self._kept.get(self._connection.address, {})

    def _keep(self, topics: Marks) -> None:
        if topics == self._here and not self._problem:
            return
        self._kept[self._connection.address] = topics
        try:
            state_file.replace(self._path, {broker: dict(sorted(kept.items())) for broker, kept in self._kept.items()})
        except OSError as error:
            problem = f"{self._path} cannot be written: {error.strerror}"
            if problem != self._problem:
                log.warning("what the broker keeps for us is forgotten at the next start: %s", problem)
            self._problem = problem
        else:
            self._problem = ""

    def _read(self) -> dict[str, Marks]:
        """What was written, of this node. A file that is damaged is as good as none: less is taken off."""
        try:
            found = state_file.read(self._path)
            return {broker: {t: m for t, m in _marks(kept) if self._is_ours(t, m)} for broker, kept in found.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("what the broker keeps for us is unknown: %s cannot be read: %s", self._path, error)
            return {}

    def _is_ours(self, topic: str, mark: str) -> bool:
        return topic.startswith(self._start) or mark == self._connection.topics.availability


def _marks(kept: Any) -> Iterable[tuple[str, str]]:
    """Topics as they were written; once as a list."""
    return kept.items() if isinstance(kept, dict) else [(topic, "") for topic in kept]
