"""What a configuration that was read again changes: what can hold at once, and what needs a restart. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edge_daemon.config import Config
from edge_daemon.source_config import SourceConfig

LIVE = frozenset(
    {"enabled", "caption", "questions", "detect", "image", "priority", "interval_s", "max_age_s", "gate", "repeats"}
)
"""Keys of a source that are looked at anew for every picture."""
APART = frozenset({"mqtt", "sources"})
"""Sections of which a part can change at once: of mqtt all but the base topic, of which all topics are made."""


@dataclass(frozen=True)
class Reloaded:
    """The outcome."""

    running: Config
    """The old configuration with what can be changed at once."""
    applied: list[str]
    """Dotted keys that hold now."""
    restart: list[str]
    """Dotted keys that hold after a restart only."""


def reloaded(old: Config, new: Config) -> Reloaded:
    """Compare them key by key."""
    top = [key for key in Config.model_fields if key not in APART and getattr(old, key) != getattr(new, key)]
    applied, restart = [key for key in top if key == "log_level"], [key for key in top if key != "log_level"]
    mqtt = new.mqtt.model_copy(update={"base_topic": old.mqtt.base_topic})
    applied += ["mqtt"] if mqtt != old.mqtt else []
    restart += ["mqtt.base_topic"] if new.mqtt.base_topic != old.mqtt.base_topic else []
    sources = dict(old.sources)
    for name in sorted(old.sources.keys() | new.sources.keys()):
        if name not in old.sources or name not in new.sources:
            restart.append(f"sources.{name}")
            continue
        changed = different(old.sources[name], new.sources[name])
        live = [key for key in changed if key in LIVE and key in type(old.sources[name]).model_fields]
        sources[name] = old.sources[name].model_copy(update={key: getattr(new.sources[name], key) for key in live})
        applied += [f"sources.{name}.{key}" for key in live]
        restart += [f"sources.{name}.{key}" for key in changed if key not in live]
    running = old.model_copy(update={"log_level": new.log_level, "mqtt": mqtt, "sources": sources})
    return Reloaded(running, applied, restart)


def different(old: SourceConfig, new: SourceConfig) -> list[str]:
    """The keys of the new one that have other values."""
    return [key for key in type(new).model_fields if getattr(old, key, None) != getattr(new, key)]
