"""What the daemon and its children say to each other: one frozen dataclass a message. A leaf.

`pack` and `unpack` turn them into wire messages and back; the field `payload`, where a class has one,
travels as the payload. A message that lacks, misspells or mistypes a field raises WireError.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edge_daemon.errors import WireError
from edge_daemon.wire import Message

_LARGEST = sys.float_info.max
THUMBNAIL_PX = 32
"""Side of the square grey thumbnail that travels with every frame."""
TaskKind = Literal["caption", "query", "detect", "point"]
FinishReason = Literal["eos", "length", "memory", "repetition", ""]
"""Empty: there is no outcome."""


@dataclass(frozen=True)
class FileKey:
    """A picture file as it was when it was looked at; a changed file has another key."""

    name: str
    """Path relative to the watched folder."""
    mtime_ns: int
    size_bytes: int


# ---- grabber → daemon ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrabberReady:
    """The source is open."""

    decoder: str
    """What reads the pictures, with its version."""


@dataclass(frozen=True)
class Offer:
    """Files that were found; the daemon answers with Wanted."""

    files: list[FileKey]
    gone: list[str] = field(default_factory=list)
    """Of the doubtful ones in the last Wanted, those that are not there any more."""


@dataclass(frozen=True)
class Opening:
    """The picture that is read next: should the grabber die or hang now, this file is why."""

    file: FileKey


@dataclass(frozen=True)
class Frame:
    """One picture, ready for the model."""

    captured_at_s: float
    """Unix time of the picture, not of its reading."""
    width_px: int
    height_px: int
    original_width_px: int
    original_height_px: int
    thumbnail_hex: str
    """THUMBNAIL_PX × THUMBNAIL_PX grey bytes, for the gate."""
    capture_ms: float
    """Waiting for the camera; 0 for files."""
    decode_ms: float
    """Reading, turning upright and shrinking."""
    file: FileKey | None
    payload: bytes = field(repr=False)
    """RGB bytes, row by row, height_px × width_px × 3."""


@dataclass(frozen=True)
class Problem:
    """A picture that cannot be read (`file` is set), or why a source does not deliver (it is not).

    A camera's grabber that says the latter has nothing more to say: it is ended, and another one started later.
    """

    reason: str
    file: FileKey | None


@dataclass(frozen=True)
class Idle:
    """Nothing to do; the source is being watched."""

    problem: str = ""
    """What still keeps the source from delivering; empty when it is well."""
    late: str = ""
    """Why it delivers, but not soon."""


# ---- daemon → grabber ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Open:
    """The first message: what to open. Not an argument of the process, which everybody on the machine can read."""

    settings_json: str = field(repr=False)


@dataclass(frozen=True)
class Next:
    """Send one Frame or Problem, as soon as there is one."""

    fresh: bool = False
    """Somebody asked for this picture: a camera's newest frame, whatever that costs."""


@dataclass(frozen=True)
class Wanted:
    """Which files of an Offer have not been dealt with yet, in the offer's order."""

    flags: list[bool]
    doubtful: list[str] = field(default_factory=list)
    """Names of files that were dealt with: are they still there? The next Offer tells."""


# ---- daemon → worker -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One thing to do with a picture."""

    id: str
    """`caption`, or the id of a configured question."""
    kind: TaskKind
    text: str
    """Caption length, question, or what to look for."""


@dataclass(frozen=True)
class ImageWish:
    """How the picture itself is wanted back, as a JPEG."""

    quality: int
    """At most, 1 to 95."""
    max_bytes: int
    boxes: bool
    """Whether what was found is framed in it."""


@dataclass(frozen=True)
class Request:
    """One picture and what to do with it; the picture is encoded once for all tasks."""

    width_px: int
    height_px: int
    tasks: list[Task]
    max_tokens: int
    temperature: float
    top_p: float
    payload: bytes = field(repr=False)
    """RGB bytes, as in Frame."""
    image: ImageWish | None = None


@dataclass(frozen=True)
class Cap:
    """How much memory the worker may use from now on, in the middle of a caption as well. It answers nothing."""

    kv_positions: int
    """Of the KV cache: what is longer ends with finish_reason `memory`."""
    release: bool
    """Whether freed memory and the vision encoder are given back after every picture, and now."""


# ---- worker → daemon -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerReady:
    """The model is loaded."""

    model: str
    note: str
    """What every reader of an answer must know about the model."""
    precision: str
    kv_positions: int
    kv_bytes: int
    budget_bytes: int
    rss_bytes: int
    load_s: float
    threads: int
    versions: dict[str, str]
    engine: str = "torch"
    """torch, or onnx."""
    device: str = "cpu"
    reason: str = ""
    """Why this device and this precision, and what the memory asks for beside."""
    warning: str = ""
    """What the configuration asks for and its owner will regret."""
    threads_reason: str = ""
    """Why so many."""
    release_vision: bool = False
    """Whether the vision encoder's memory is given back after every picture."""
    needs: dict[str, int] = field(default_factory=dict)
    """What it takes in all: memory.Needs, by its fields' names. Empty: it cannot be told to take less."""
    least_needs: dict[str, int] = field(default_factory=dict)
    """The same of the next worker, should that find too little memory for this precision. Empty: no less."""
    lengths: list[str] = field(default_factory=list)
    """Of captions, that it can be asked for. Empty: that is not known."""


@dataclass(frozen=True)
class WorkerRefused:
    """The worker cannot start and trying again will not help until something changes."""

    kind: Literal["model", "memory"]
    reason: str
    needs: dict[str, int] = field(default_factory=dict)
    """For want of memory: what it takes in all, as in WorkerReady."""


@dataclass(frozen=True)
class Progress:
    """Sent at every step of a request: proof that the worker is not stuck."""

    step: str


@dataclass(frozen=True)
class TaskResult:
    """The outcome of one task."""

    id: str
    kind: TaskKind
    text: str
    """The words; empty for objects and points."""
    objects: list[dict[str, float]]
    """Boxes {x_min, y_min, x_max, y_max} or points {x, y}, relative."""
    tokens: int
    finish_reason: FinishReason
    prefill_ms: float
    """The prompt through the decoder, the first time together with the picture. Captions and answers that were
    generated together share this time and the next."""
    generate_ms: float
    error: str = ""
    """Why there is no outcome, when there is none."""


@dataclass(frozen=True)
class Results:
    """All outcomes of one request, in the order of its tasks."""

    tasks: list[TaskResult]
    encode_ms: float
    rss_bytes: int
    kv_positions: int = 0
    """The cap that held; 0: that of WorkerReady."""
    kv_touched_bytes: int = 0
    """What of the KV cache's buffer is in memory."""
    image_problem: str = ""
    """Why there is no image, though it was wished for."""
    payload: bytes = field(default=b"", repr=False)
    """The image, a JPEG; empty when there is none."""


@dataclass(frozen=True)
class Failed:
    """The request failed as a whole; the worker lives."""

    reason: str


_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        *(GrabberReady, Offer, Opening, Frame, Problem, Idle, Open, Next, Wanted),
        *(Request, Cap, WorkerReady, WorkerRefused, Progress, Results, Failed),
    )
}


def pack(item: Any) -> Message:
    """A wire message from one of the classes above."""
    values = asdict(item)
    payload = values.pop("payload", b"")
    return Message(type(item).__name__, values, payload)


def unpack(message: Message) -> Any:
    """One of the classes above from a wire message. Raises WireError."""
    cls = _CLASSES.get(message.type)
    if cls is None:
        raise WireError(f"unknown message type {message.type!r}")
    values = dict(message.fields)
    if "payload" in {f.name for f in fields(cls)}:
        values["payload"] = message.payload
    elif message.payload:
        raise WireError(f"{message.type} carries no payload")
    return _build(cls, values)


_hints = cache(get_type_hints)  # an Offer has hundreds of FileKeys


def _build(cls: Any, values: Any) -> Any:
    hints = _hints(cls)
    if not isinstance(values, dict):
        raise WireError(f"{cls.__name__}: {_shown(values)} is not allowed")
    if set(values) - set(hints):
        raise WireError(f"{cls.__name__}: unexpected field {_shown(min(set(values) - set(hints)))}")
    try:
        return cls(**{name: _value(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()})
    except TypeError as error:  # a field is missing
        raise WireError(str(error)) from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value, checked against its annotation."""
    if get_origin(hint) is UnionType:
        return None if value is None else _value(next(h for h in get_args(hint) if h is not NoneType), value, where)
    if is_dataclass(hint):
        return _build(hint, value)
    if get_origin(hint) is list and isinstance(value, list):
        return [_value(get_args(hint)[0], item, where) for item in value]
    if get_origin(hint) is dict and isinstance(value, dict):
        return {name: _value(get_args(hint)[1], item, where) for name, item in value.items()}
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if hint is float and type(value) in (int, float) and -_LARGEST <= value <= _LARGEST:
        return float(value)
    if hint not in (str, int, bool, bytes) or type(value) is not hint:
        raise WireError(f"{where}: {_shown(value)} is not allowed")
    return value


def _shown(value: Any) -> str:
    """A wrong value, at no great length and without looking into what may be nested without end."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:80]
