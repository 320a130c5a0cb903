"""Everything that the broker can ask of this node, and what Home Assistant is told: put together from the parts.

broker ──► controls ──► inquiries ──► slots ──► caption task
              ├───────► switches, settings, worker, health
              └───────► discovery ──► Home Assistant; then leftovers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edge_daemon import __version__, homeassistant, machine, readings
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
        parts = Parts(*(captures, captioner, health, inquiries, switches, settings, read_config, self._on_change))
        self.controls = Controls(connection, running, parts)
        switches.apply()

    def _on_change(self) -> None:
        self._leftovers.note()
        self.discovery.refresh()

    def _retained(self) -> Iterator[str]:
        """All topics that the sources retain, as they are now."""
        for name, capture in self._captures.items():
            source = capture.config
            answers = [question.id for question in source.questions] + [thing.id for thing in source.detect]
            yield from self._topics.retained(
                name, answers, caption=source.caption != "none", image=source.image.enabled
            )

    def _describe(self) -> dict[str, Any] | None:
        """The discovery message for the sources as they are now."""
        if not self._config.homeassistant.enabled:
            return None
        sources = {name: capture.config for name, capture in self._captures.items()}
        return homeassistant.document(self._config.model_copy(update={"sources": sources}), self._topics, self._facts)
