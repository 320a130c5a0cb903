"""The configuration: one YAML file, checked before anything starts.

Every error says file, line, column, key, value and what is expected; a misspelt key gets a suggestion.
Defaults are the ones a Raspberry Pi owner wants; what has no sensible default is required.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from edge_daemon import yaml_file
from edge_daemon.choices import KvPrecision, LogLevel, WantedDevice, WantedPrecision, WantedVariant
from edge_daemon.config_words import Wording
from edge_daemon.errors import ConfigError
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.sections import PATTERNS_IN_WORDS, TOPIC_PATTERN, Name, Section
from edge_daemon.source_config import AnySource, Question, TaggedSource
from edge_daemon.thermal import LIMIT_AT_C, SLOW_DOWN_AT_C
from edge_daemon.units import MIB

RESERVED_SOURCE_NAMES = frozenset({"availability", "health", "info", "log", "request", "response"})
"""Second topic levels of a node that are not sources (the topics of the README)."""
Source = TypeVar("Source", bound=AnySource)


def _not_reserved(name: str) -> str:
    if name in RESERVED_SOURCE_NAMES:
        raise ValueError("the node itself has this topic; give the source another name")
    return name


SourceName = Annotated[Name, AfterValidator(_not_reserved)]


def default_node() -> str:
    """The host name, with what a topic level cannot hold replaced."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0]) or "node"


def default_state_dir() -> Path:
    """$EDGE_DAEMON_STATE_DIR, systemd's $STATE_DIRECTORY, or /var/lib/edge-daemon."""
    named = os.environ.get("EDGE_DAEMON_STATE_DIR") or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(named or "/var/lib/edge-daemon")


class OutboxConfig(Section):
    """What may wait for the broker; the oldest results go first."""

    max_mib: Annotated[int, Field(ge=1, le=4096)] = 64
    max_age_days: Annotated[float, Field(gt=0, le=3650)] = 7.0


class ModelConfig(Section):
    """Which model answers, and within which bounds."""

    name: str = "demo-shapes"
    """A model of the store, a path to a model directory, or `moondream`, which leaves the choice to `variant`."""
    variant: WantedVariant = "auto"
    """Which moondream; `auto` takes the 2B where the memory holds it."""
    device: WantedDevice = "auto"
    precision: WantedPrecision = "auto"
    """`auto`: on the CPU float32 where the memory holds it, else int8; bfloat16 or float16 on an accelerator; what the
    graphs hold for `engine: onnx`."""
    kv_precision: KvPrecision = "auto"
    """Of the KV cache; float16 halves it. `auto`: float16 beside int8, else what is computed in."""
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    memory_limit_mib: Literal["auto"] | Annotated[int, Field(ge=64)] = "auto"
    kv_positions: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    start_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    silence_timeout_s: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """A worker that reports no step for so long is stuck and is killed; `auto` follows from what steps take here."""
    stop_grace_s: Annotated[float, Field(ge=0)] = 20.0
    """How long a caption in flight may take to finish when the service stops."""

    @property
    def memory_limit_bytes(self) -> int | None:
        """What the worker may have at most; None: nobody says so."""
        return None if self.memory_limit_mib == "auto" else self.memory_limit_mib * MIB

    @model_validator(mode="after")
    def _variant_needs_its_family(self) -> Self:
        if self.variant != "auto" and self.name != "moondream":
            raise ValueError(
                f"variant {self.variant} only works with name 'moondream'; with {self.name!r} leave it out"
            )
        return self

    @model_validator(mode="after")
    def _int8_is_for_the_cpu(self) -> Self:
        if self.precision == "int8" and self.device in ("cuda", "mps"):
            raise ValueError(f"precision int8 runs on the CPU only; with device {self.device} leave precision out")
        return self


class ThermalConfig(Section):
    """When captions pause between pictures, so that the board stays cool."""

    slow_down_at_c: Annotated[float, Field(ge=30, le=120)] = SLOW_DOWN_AT_C
    limit_at_c: Annotated[float, Field(ge=30, le=120)] = LIMIT_AT_C
    """Where pauses are longest: before the firmware slows the board down by itself."""

    @model_validator(mode="after")
    def _limit_is_above(self) -> Self:
        if self.limit_at_c <= self.slow_down_at_c:
            raise ValueError(f"limit_at_c must be above slow_down_at_c ({self.slow_down_at_c:g})")
        return self


class HomeAssistantConfig(Section):
    """Whether Home Assistant is told what there is, and where it listens."""

    enabled: bool = True
    prefix: Annotated[str, Field(pattern=TOPIC_PATTERN)] = "homeassistant"
    """Of the discovery topics, as set in Home Assistant."""


class Config(Section):
    """The whole file."""

    node: Name = Field(default_factory=default_node)
    state_dir: Path = Field(default_factory=default_state_dir)
    log_level: LogLevel = "info"
    mqtt: MqttConfig = MqttConfig()
    outbox: OutboxConfig = OutboxConfig()
    model: ModelConfig = ModelConfig()
    thermal: ThermalConfig = ThermalConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
    sources: Annotated[dict[SourceName, TaggedSource], Field(min_length=1)]


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError that lists everything wrong with it."""
    document = yaml_file.read(path)
    if not isinstance(document.values, dict):
        raise ConfigError(f"{path}:1:1: the file must begin with keys such as 'mqtt:' and 'sources:'")
    try:
        return Config.model_validate(document.values)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        wording = Wording(Config, PATTERNS_IN_WORDS)
        for detail in error.errors():
            subject, message = wording.explain(detail, document)
            problems.setdefault(subject, []).append(message)
        raise ConfigError("\n".join(f"{subject}: {' or '.join(m)}" for subject, m in problems.items())) from None


def questions(values: Any) -> tuple[Question, ...]:
    """Questions that come from elsewhere than the file, under its rules. Raises ConfigError with the first problem."""
    made: tuple[Question, ...] = _checked(tuple[Question, ...], values, "questions")
    return made


def changed(source: Source, changes: Mapping[str, Any]) -> Source:
    """A source with other values for some of its keys, under the rules of the file. Raises ConfigError."""
    made: Source = _checked(type(source), {**source.model_dump(), **changes})
    return made


def _checked(kind: Any, values: Any, *start: str) -> Any:
    """Values as a section or a list of sections; what is wrong first is told with its key below `start`."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, (*start, *detail["loc"])))
        problem = Wording(kind, PATTERNS_IN_WORDS).problem(detail, detail["loc"])
        raise ConfigError(f"{where}: {problem}" if where else problem) from None
