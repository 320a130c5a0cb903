"""Everything that the broker can ask of this node, and what Home Assistant is told: put together from the parts.

broker ──► controls ──► inquiries ──► slots ──► caption task
              ├───────► switches, settings, worker, health
              └───────► discovery ──► Home Assistant; then leftovers
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from edge_daemon import __version__, homeassistant, machine, readings, topics
from edge_daemon.captioner import Captioner
from edge_daemon.capture import AnyCapture
from edge_daemon.config import Config
from edge_daemon.controls import Controls, Parts
from edge_daemon.discovery import Discovery
from edge_daemon.health import Health
from edge_daemon.homeassistant import Facts
from edge_daemon.inquiries import Inquiries
from edge_daemon.jobs import Job
from edge_daemon.leftovers import Leftovers
from edge_daemon.mqtt import Connection
from edge_daemon.settings import Settings
from edge_daemon.slots import Slots
from edge_daemon.source_config import LiveSource
from edge_daemon.switches import Switches


class Remote:
    """The node, as the broker's other clients can use it."""

    def __init__(
        self,
        running: Config,
        connection: Connection,
        captures: Mapping[str, AnyCapture],
        slots: Slots[Job],
        captioner: Captioner,
        health: Health,
        settings: Settings,
        read_config: Callable[[], Config],
        on_change: Callable[[], None],
    ) -> None:
        """`running` is the configuration file, without what was set over MQTT."""
        self._config = running
        self._captures = captures
        self._topics = connection.topics
        device_id = homeassistant.device_id(machine.machine_id(), running.node, str(running.state_dir))
        live = frozenset(name for name, source in running.sources.items() if isinstance(source, LiveSource))
        self._facts = Facts(device_id, __version__, readings.board_model(), live)
        self._leftovers = Leftovers(connection, running.state_dir / "retained.json", self._retained)
        prefix = running.homeassistant.prefix
        self.discovery = Discovery(connection, prefix, device_id, self._describe, self._leftovers.take_off)
        switches = Switches(connection, captures, slots, on_change)
        inquiries = Inquiries(running.node, captures, slots, captioner)
        parts = Parts(
            captures=captures,
            captioner=captioner,
            health=health,
            inquiries=inquiries,
            switches=switches,
            settings=settings,
            read_config=read_config,
            on_change=self.on_change,
        )
        self.controls = Controls(connection, running, parts)
        switches.apply()

    def on_change(self) -> None:
        """A source is another one, or the connection."""
        self._leftovers.note()
        self.discovery.refresh()

    def _retained(self) -> dict[str, str]:
        """All topics that are retained, as the sources are now, and what the answers answer."""
        made = {topics.discovery(self._config.homeassistant.prefix, self._facts.device_id): self._topics.availability}
        for name, capture in self._captures.items():
            source = capture.config
            asked = {q.id: [q.ask, q.type, *q.choices] for q in source.questions}
            asked |= {thing.id: ["detect", thing.what] for thing in source.detect}
            of_source = self._topics.retained(name, asked, caption=source.caption != "none", image=source.image.enabled)
            made |= dict.fromkeys(of_source, "")
            made |= {self._topics.of(name, f"answer/{id}"): _mark(words) for id, words in asked.items()}
        return made

    def _describe(self) -> dict[str, Any] | None:
        """The discovery message for the sources as they are now."""
        if not self._config.homeassistant.enabled:
            return None
        sources = {name: capture.config for name, capture in self._captures.items()}
        return homeassistant.document(self._config.model_copy(update={"sources": sources}), self._topics, self._facts)


def _mark(words: list[str]) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
