"""The configuration: one YAML file, checked before anything starts.

Every error says file, line, column, key, value and what is expected; a misspelt key gets a suggestion.
Defaults are the ones a Raspberry Pi owner wants; what has no sensible default is required.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from edge_daemon import yaml_file
from edge_daemon.errors import ConfigError
from edge_daemon.thermal import LIMIT_AT_C, SLOW_DOWN_AT_C
from edge_daemon.yaml_file import Document, Key

NAME_PATTERN = r"^[A-Za-z0-9_-]+$"
"""Names become MQTT topic levels and Home Assistant ids; both allow this much everywhere."""
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
TOPIC_PATTERN = r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"
HOST_PATTERN = r"^[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?$|^[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?$"
"""A host name, an IPv4 or an IPv6 address."""
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


class Section(BaseModel):
    """Unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_word(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("a word or a number is expected; YAML takes yes, no, on and off for true and false")
        return value


class MqttConfig(Section):
    """The broker and our place on it."""

    host: Annotated[str, Field(pattern=HOST_PATTERN, max_length=253)] = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    username: str | None = None
    password: SecretStr | None = None
    base_topic: Annotated[str, Field(pattern=TOPIC_PATTERN)] = "edge-daemon"
    client_id: Name | None = None
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30

    @model_validator(mode="after")
    def _password_needs_a_name(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("a password without a username is not possible in MQTT; add mqtt.username")
        return self


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


class Question(Section):
    """A question that is asked about every picture of a source."""

    id: Name
    ask: Annotated[str, Field(min_length=1, max_length=1000)]


class FolderConfig(Section):
    """Pictures that appear in a folder; each is captioned once."""

    type: Literal["folder"]
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
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    max_file_mib: Annotated[int, Field(ge=1)] = 100
    decode_memory_mib: Annotated[int, Field(ge=128)] = 512
    """The most that the process that decodes pictures may allocate."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("an absolute path is expected, such as /srv/pictures")
        return path

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        ids = [question.id for question in self.questions]
        if len(set(ids)) != len(ids):
            raise ValueError("two questions have the same id")
        if "caption" in ids:
            raise ValueError("the id 'caption' is taken by the caption itself; give the question another one")
        if self.caption == "none" and not ids:
            raise ValueError("there is nothing to do: set caption, or add questions")
        return self


class Config(Section):
    """The whole file."""

    node: Name = Field(default_factory=default_node)
    state_dir: Path = Field(default_factory=default_state_dir)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    mqtt: MqttConfig = MqttConfig()
    model: ModelConfig = ModelConfig()
    thermal: ThermalConfig = ThermalConfig()
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
        for detail in error.errors():
            subject, message = _explain(detail, document)
            problems.setdefault(subject, []).append(message)
        raise ConfigError("\n".join(f"{subject}: {' or '.join(m)}" for subject, m in problems.items())) from None


def _explain(detail: ErrorDetails, document: Document) -> tuple[str, str]:
    """What one problem is about (place, key, value), and what is wrong with it."""
    missing = detail["type"] == "missing"
    key = _real_key(tuple(part for part in detail["loc"] if part != "[key]"), missing, document)
    subject = f"{document.where(key)}: {'.'.join(map(str, key)) or '(top)'}"
    if missing:
        return subject, "this key is required"
    subject += f": value {_shown(key, detail['input'], document)}"
    if detail["type"] == "extra_forbidden":
        return subject, f"unknown key{_suggestion(key)}"
    if detail["type"] == "string_pattern_mismatch":
        return subject, PATTERNS_IN_WORDS[detail["ctx"]["pattern"]]
    message = TYPES_IN_WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return subject, message[0].lower() + message[1:]


PATTERNS_IN_WORDS = {
    NAME_PATTERN: "only letters, digits, '_' and '-' are allowed",
    TOPIC_PATTERN: "only letters, digits, '_' and '-' are allowed, with single '/' between them",
    HOST_PATTERN: "a host name or an address is expected, such as localhost or 192.168.1.20, without 'mqtt://' or port",
}
TYPES_IN_WORDS = {
    "dict_type": "names with settings below them are expected",
    "model_type": "keys with values are expected",
    "path_type": "a path is expected",
    "string_type": "a text is expected, in quotes if it looks like a number",
    "too_short": "at least one is expected",
    "tuple_type": "a list is expected",
}


def _real_key(key: Key, missing: bool, document: Document) -> Key:
    """The part of a pydantic location that stands in the file, and the missing key if one is missing.

    pydantic adds the names of union members to its locations; these are not keys.
    """
    length = len(key)
    while length and key[:length] not in document.places:
        length -= 1
    return key[: length + missing]


def _shown(key: Key, value: Any, document: Document) -> str:
    """A value as it may be shown: never a secret, not even behind a misspelt key."""
    words = [str(part).lower() for part in key]
    if any(re.search("pass|pwd|secret", word) or difflib.get_close_matches(word, ["password"]) for word in words):
        return "(hidden)"
    if any(secret[: len(key)] == key for secret in document.secrets):
        return "(hidden)"
    if isinstance(value, dict | list):
        return "(a list)" if isinstance(value, list) else "(keys with values)"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    text = re.sub(r"//[^/@]*@", "//(hidden)@", text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggestion(key: Key) -> str:
    """The known key that was probably meant."""
    section: Any = Config
    for part in key[:-1]:
        section = _below(section, part)
    if not _is_section(section):
        return ""
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _below(annotation: Any, part: str | int) -> Any:
    """The annotation of what stands under `part` of a section, a mapping or a list."""
    if _is_section(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(annotation)
    return arguments[-1 if get_origin(annotation) is dict else 0] if arguments else None
