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
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from edge_daemon import device_classes, yaml_file
from edge_daemon.answers import AnswerType, choices_problem
from edge_daemon.config_words import Wording
from edge_daemon.errors import ConfigError
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.sections import PATTERNS_IN_WORDS, TOPIC_PATTERN, Name, Section
from edge_daemon.thermal import LIMIT_AT_C, SLOW_DOWN_AT_C

RESERVED_SOURCE_NAMES = frozenset({"availability", "health", "info", "log", "request", "response"})
"""Second topic levels of a node that are not sources (the topics of the README)."""
MIB = 1 << 20


def _not_reserved(name: str) -> str:
    if name in RESERVED_SOURCE_NAMES:
        raise ValueError("this is a topic of the node itself; give the source another name")
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
    variant: Literal["auto", "0.5b", "2b"] = "auto"
    """Which moondream; `auto` takes the 2B where the memory holds it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "int8", "bfloat16", "float16"] = "auto"
    """`auto`: on the CPU float32 where the memory holds it, else int8; bfloat16 or float16 on an accelerator; what the
    graphs hold for `engine: onnx`."""
    kv_precision: Literal["auto", "float32", "float16"] = "auto"
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

    @model_validator(mode="after")
    def _variant_needs_its_family(self) -> Self:
        if self.variant != "auto" and self.name != "moondream":
            raise ValueError(f"variant {self.variant} is for the name 'moondream'; with {self.name!r} leave it out")
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
            raise ValueError(f"limit_at_c has to be above slow_down_at_c ({self.slow_down_at_c:g})")
        return self


class HomeAssistantConfig(Section):
    """Whether Home Assistant is told what there is, and where it listens."""

    enabled: bool = True
    prefix: Annotated[str, Field(pattern=TOPIC_PATTERN)] = "homeassistant"
    """Of the discovery topics, as set in Home Assistant."""


class Question(Section):
    """A question that is asked about every picture of a source."""

    id: Name
    ask: Annotated[str, Field(min_length=1, max_length=1000)]
    type: AnswerType = "text"
    """What the words become: `value` of the result. A value that cannot be told for certain is "unknown"."""
    choices: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=50)] = ()
    for_frames: Annotated[int, Field(ge=1, le=100)] = 1
    """So many pictures in a row have to say the same before the value changes; yes_no and choice only."""
    unit: Annotated[str, Field(min_length=1, max_length=20)] | None = None
    device_class: str | None = None
    """How Home Assistant shows it, such as `door`."""

    @model_validator(mode="after")
    def _choices_can_be_told_apart(self) -> Self:
        if self.type != "choice":
            if self.choices:
                raise ValueError(f"choices are for type choice; leave them out for type {self.type}")
            return self
        problem = choices_problem(self.choices)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _what_is_set_fits_the_type(self) -> Self:
        if self.for_frames > 1 and self.type not in ("yes_no", "choice"):
            raise ValueError(f"for_frames is for the types yes_no and choice; leave it out for type {self.type}")
        problem = device_classes.problem(self.type, self.device_class, self.unit)
        if problem:
            raise ValueError(problem)
        return self


class Detection(Section):
    """Something to look for in every picture of a source; in the file also its name alone."""

    id: Name
    what: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="before")
    @classmethod
    def _from_a_name(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"id": re.sub(r"[^A-Za-z0-9_-]+", "-", values).strip("-"), "what": values}
        if not isinstance(values, dict):
            raise ValueError("a thing to look for is expected, such as car, in quotes if it looks like a number")
        return values


class ImageConfig(Section):
    """Whether the picture that was captioned is published as well, and how."""

    enabled: bool = False
    quality: Annotated[int, Field(ge=20, le=95)] = 80
    """Of the JPEG; less where it would be too large."""
    max_kib: Annotated[int, Field(ge=1, le=8192)] = 256
    """An image that does not fit in any quality is not published."""
    boxes: bool = False
    """Frame what `detect` has found."""


class FolderConfig(Section):
    """Pictures that appear in a folder; each is captioned once."""

    type: Literal["folder"]
    enabled: bool = True
    """Whether it is captioned at all; can be changed over MQTT."""
    path: Path
    pattern: Annotated[str, Field(min_length=1)] | None = None
    """Which pictures: a name such as `*.jpg`, or a path below the folder such as `porch/*`; None is all."""
    recursive: bool = True
    poll: bool = False
    """For network mounts, where the kernel tells nothing of new files."""
    settle_s: Annotated[float, Field(ge=0, le=600)] = 2.0
    """A file is taken when it has not changed for so long."""
    rescan_s: Annotated[float, Field(ge=1)] = 60.0
    caption: Literal["short", "normal", "long", "none"] = "short"
    questions: tuple[Question, ...] = ()
    detect: tuple[Detection, ...] = ()
    image: ImageConfig = ImageConfig()
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    max_file_mib: Annotated[int, Field(ge=1)] = 100
    decode_memory_mib: Annotated[int, Field(ge=128)] = 512
    """The most that the process that decodes pictures may allocate."""
    decode_timeout_s: Annotated[float, Field(ge=1, le=600)] = 30.0
    """Processor time for one picture; longer is stuck."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("an absolute path is expected, such as /srv/pictures")
        return path

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        ids = [question.id for question in self.questions] + [thing.id for thing in self.detect]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the id {twice!r} is there twice; questions and detect need an id of their own each")
        if "caption" in ids:
            raise ValueError("the id 'caption' is taken by the caption itself; give the question another one")
        if self.image.boxes and not self.detect:
            raise ValueError("image.boxes frames what detect finds: add detect, or leave image.boxes out")
        if self.caption == "none" and not ids:
            raise ValueError("there is nothing to do: set caption, or add questions or detect")
        return self


class Config(Section):
    """The whole file."""

    node: Name = Field(default_factory=default_node)
    state_dir: Path = Field(default_factory=default_state_dir)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    mqtt: MqttConfig = MqttConfig()
    outbox: OutboxConfig = OutboxConfig()
    model: ModelConfig = ModelConfig()
    thermal: ThermalConfig = ThermalConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
    sources: Annotated[dict[SourceName, FolderConfig], Field(min_length=1)]


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError that lists everything wrong with it."""
    document = yaml_file.read(path)
    if not isinstance(document.values, dict):
        raise ConfigError(f"{path}:1:1: keys such as 'mqtt:' and 'sources:' are expected at the top")
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


def changed(source: FolderConfig, changes: Mapping[str, Any]) -> FolderConfig:
    """A source with other values for some of its keys, under the rules of the file. Raises ConfigError."""
    made: FolderConfig = _checked(type(source), {**source.model_dump(), **changes})
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
