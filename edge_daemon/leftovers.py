"""What a broker still keeps for us of earlier, and nobody wishes any more: it is taken off.

Such as the answers to a question that is gone, the image of a source that publishes none now, and all topics of a
source that is gone. A broker says what it keeps only to those who may listen to all of it, so we remember: by broker,
in the state directory. A node with another name leaves behind what it had.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from edge_daemon import state_file
from edge_daemon.errors import PublishDenied
from edge_daemon.mqtt import Connection
from edge_daemon.topics import Publication

log = logging.getLogger(__name__)


class Leftovers:
    """The file, and what is done with it."""

    def __init__(self, connection: Connection, path: Path, wished: Callable[[], Iterable[str]]) -> None:
        """`wished` gives all topics that the sources retain, as the sources are now."""
        self._connection = connection
        self._path = path
        self._wished = wished
        self._kept = self._read()
        """Broker → topics that it may keep."""
        self._problem = ""
        self.note()

    def note(self) -> None:
        """Remember what is retained from now on, before it is; to be called when a source is another one."""
        wished = frozenset(self._wished())
        self._connection.retained.limit(wished)
        self._keep(self._here | wished)

    async def take_off(self) -> bool:
        """Take off what is not wished; whether the broker allows it for now.

        What it does not confirm remains to be taken off.
        """
        self.note()  # it may be another broker
        gone = sorted(self._here - frozenset(self._wished()))
        sent = {topic: self._connection.publish(Publication(topic, b"", retain=True)) for topic in gone}
        if not sent:
            return True
        await asyncio.wait(sent.values())
        errors = {topic: future.exception() for topic, future in sent.items() if not future.cancelled()}
        done = {topic for topic, error in errors.items() if error is None}
        if done:
            log.info("removed from the broker, as it is no longer in the configuration: %s", ", ".join(sorted(done)))
        self._keep((self._here - done) | frozenset(self._wished()))
        return not any(isinstance(error, PublishDenied) for error in errors.values())

    @property
    def _here(self) -> frozenset[str]:
        return self._kept.get(self._connection.address, frozenset())

    def _keep(self, topics: frozenset[str]) -> None:
        if topics == self._here:
            return
        self._kept[self._connection.address] = topics
        try:
            state_file.replace(self._path, {broker: sorted(kept) for broker, kept in self._kept.items()})
        except OSError as error:
            problem = f"{self._path} cannot be written: {error.strerror}"
            if problem != self._problem:
                log.warning("what the broker keeps for us is forgotten at the next start: %s", problem)
            self._problem = problem

    def _read(self) -> dict[str, frozenset[str]]:
        """What was written, of this node. A file that is damaged is as good as none: less is taken off."""
        start = self._connection.topics.of("", "").rstrip("/") + "/"
        try:
            found = json.loads(self._path.read_bytes())
            return {broker: frozenset(t for t in kept if t.startswith(start)) for broker, kept in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            log.warning("what the broker keeps for us is unknown: %s cannot be read: %s", self._path, error)
            return {}
