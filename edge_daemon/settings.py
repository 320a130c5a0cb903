"""What was set over MQTT: kept in the state directory, and laid over the configuration file.

The file is JSON, source → key → value, with the keys of the configuration. Whoever deletes it goes back to the
configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_daemon import config, state_file
from edge_daemon.config import Config, Source
from edge_daemon.errors import ConfigError

KEYS = ("enabled", "interval_s", "caption", "questions")
"""What can be set."""
log = logging.getLogger(__name__)


class Settings:
    """The file, and what it says."""

    def __init__(self, path: Path) -> None:
        """Read it. One that cannot be read is told of, and is as good as none."""
        self._path = path
        self._changes = self._read()

    def over(self, settings: Config) -> Config:
        """The configuration with what was set."""
        sources = {name: self.over_source(name, source) for name, source in settings.sources.items()}
        return settings.model_copy(update={"sources": sources})

    def over_source(self, name: str, source: Source) -> Source:
        """One source with what was set for it. A key that does not fit the file any more is told of and left out."""
        changes = self._changes.get(name, {})
        made, problems = _over(source, changes)
        for key, problem in problems.items():
            log.warning("source %s: %s, set over MQTT (%s), no longer applies: %s", name, key, self._path, problem)
        if holds := [key for key in changes if key not in problems]:
            log.info("source %s: set over MQTT and kept in %s: %s", name, self._path, ", ".join(holds))
        return made

    def change(self, name: str, changes: Mapping[str, Any]) -> str:
        """Keep changes that have been checked; why they hold until the next start only, or nothing."""
        self._changes[name] = {**self._changes.get(name, {}), **_plain(changes)}
        try:
            state_file.replace(self._path, self._changes)
        except OSError as error:
            problem = f"{self._path} cannot be written: {error.strerror}"
            log.warning("source %s: what was set is lost at the next start: %s", name, problem)
            return problem
        return ""

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = state_file.read(self._path)
            return {
                name: {key: value for key, value in changes.items() if key in KEYS} for name, changes in found.items()
            }
        except OSError as error:
            log.warning("what was set over MQTT is lost: %s cannot be read: %s", self._path, error.strerror)
        except (ValueError, AttributeError):
            log.warning("what was set over MQTT is lost: %s is damaged; the configuration applies", self._path)
        return {}


def _over(source: Source, changes: Mapping[str, Any]) -> tuple[Source, dict[str, str]]:
    """A source with the changes that hold, key by key, and what is wrong with the others."""
    problems: dict[str, str] = {}
    for key in (key for key in KEYS if key in changes):
        try:
            source = config.changed(source, {key: changes[key]})
        except ConfigError as error:
            problems[key] = str(error)
    if 0 < len(problems) < len(changes):  # one may hold as soon as another one does: no caption, but questions
        return _over(source, {key: changes[key] for key in problems})
    return source, problems


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    plain = dict(changes)
    if "questions" in plain:
        plain["questions"] = [q.model_dump(mode="json", exclude_defaults=True) for q in plain["questions"]]
    return plain
