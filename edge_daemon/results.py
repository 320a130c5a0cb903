"""From what the worker answers to what subscribers read (`schema: 1`). Pure.

A result is made once, when its picture has been captioned, and becomes a document where it is kept or answered with;
only `seq` (the outbox), `replayed` and what is known of the clock (when it is published) come later.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from edge_daemon.answers import AnswerType, Value
from edge_daemon.clock import Stamp, corrected
from edge_daemon.messages import FinishReason, Frame, Results, Task, TaskResult, WorkerReady

SCHEMA = 1
_FIRST_S, _LAST_S = (datetime(*day, tzinfo=UTC).timestamp() for day in ((1, 1, 1), (9999, 12, 31)))
NAMESPACE = uuid.UUID("5f0a3f0e-6a3c-4f43-9b0e-2d6d0c9f1e11")
"""Ours alone: ids of different programs never meet."""

Trigger = Literal["file", "request", "first", "change", "interval", "heartbeat"]
"""A file that was found, a command, or why the gate let a frame pass."""


@dataclass(frozen=True)
class Origin:
    """Where a frame comes from."""

    node: str
    source: str
    frame: Frame
    trigger: Trigger
    taken_s: float
    """Monotonic time at which the daemon received the frame."""


@dataclass(frozen=True)
class Captioned:
    """A picture in words."""

    caption: str
    length: str


@dataclass(frozen=True)
class Answered:
    """A question and its answer."""

    question: str
    answer: str
    value: Value
    """What is believed of it, by the type of the question; without one, the words."""
    type: AnswerType | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Found:
    """What was looked for, and the boxes in which it is."""

    target: str
    objects: list[dict[str, float]]
    count: int


Said = Captioned | Answered | Found


@dataclass(frozen=True)
class Latency:
    """How long a result took, in milliseconds; `total` has the waiting between the steps as well."""

    capture: float
    decode: float
    encode: float
    prefill: float
    generate: float
    total: float


@dataclass(frozen=True)
class Result:
    """One thing that was said of one picture. The names, here and above, are those of the document."""

    id: str
    node: str
    source: str | None
    """None: the picture came with a command."""
    captured_at: str
    task: str
    said: Said
    file: str | None
    model: str
    note: str | None
    engine: str
    precision: str
    tokens: int
    finish_reason: FinishReason
    trigger: Trigger
    kv_tokens: int
    latency_ms: Latency
    unchanged: bool | None = None

    @property
    def words(self) -> str:
        """What was said, for the log."""
        match self.said:
            case Captioned(words) | Answered(_, words):
                return words
            case Found(_, _, count):
                return f"{count} found"

    def document(self) -> dict[str, Any]:
        """What subscribers read: what was said stands among the rest, and what is None is left out."""
        document: dict[str, Any] = {"schema": SCHEMA}
        for name, value in asdict(self).items():
            document |= value if name == "said" else {name: value}
        return {name: value for name, value in document.items() if value is not None}


def results_of(origin: Origin, tasks: list[Task], answer: Results, worker: WorkerReady, now_s: float) -> list[Result]:
    """One result a task that has an outcome; `now_s` is monotonic."""
    asked = {task.id: task for task in tasks}
    return [
        _result(origin, asked[outcome.id], outcome, answer, worker, now_s)
        for outcome in answer.tasks
        if not outcome.error
    ]


def _result(
    origin: Origin, task: Task, outcome: TaskResult, answer: Results, worker: WorkerReady, now_s: float
) -> Result:
    frame = origin.frame
    return Result(
        id=result_id(origin, task),
        node=origin.node,
        source=origin.source or None,
        captured_at=utc(frame.captured_at_s),
        task=task.id,
        said=_said(task, outcome),
        file=frame.file.name if frame.file else None,
        model=worker.model,
        note=worker.note or None,
        engine=worker.engine,
        precision=worker.precision,
        tokens=outcome.tokens,
        finish_reason=outcome.finish_reason,
        trigger=origin.trigger,
        kv_tokens=answer.kv_positions or worker.kv_positions,
        latency_ms=Latency(
            capture=round(frame.capture_ms, 1),
            decode=round(frame.decode_ms, 1),
            encode=round(answer.encode_ms, 1),
            prefill=round(outcome.prefill_ms, 1),
            generate=round(outcome.generate_ms, 1),
            total=round(frame.capture_ms + frame.decode_ms + (now_s - origin.taken_s) * 1000, 1),
        ),
    )


def _said(task: Task, outcome: TaskResult) -> Said:
    if task.kind == "caption":
        return Captioned(outcome.text, task.text)
    if task.kind == "query":
        return Answered(task.text, outcome.text, outcome.text)
    objects = [{side: round(value, 4) for side, value in found.items()} for found in outcome.objects]
    return Found(task.text, objects, len(objects))


def result_id(origin: Origin, task: Task) -> str:
    """The same for the same file, unchanged, and the same task: a repeated result can be recognised.

    What was asked for by hand is a result of its own each time.
    """
    if origin.frame.file is None or origin.trigger == "request":
        return str(uuid.uuid4())
    file = origin.frame.file
    parts = (origin.node, origin.source, file.name, str(file.mtime_ns), str(file.size_bytes), task.id, task.text)
    return str(uuid.uuid5(NAMESPACE, "\0".join(parts).encode("utf-8", "surrogatepass").hex()))


def published(document: dict[str, Any], replayed: bool, made: Stamp, now: Stamp) -> dict[str, Any]:
    """A document as it is sent now. One that was made before the clock was right is marked, or corrected.

    It can be corrected when the clock has been set right since then in the same boot, and the picture is of this
    boot as well: its date then came from the same wrong clock.
    """
    sent = {**document, "replayed": replayed}
    if made.synced is not False:
        return sent
    right, captured_at = corrected(made, now), document.get("captured_at")
    if right.synced and captured_at:
        captured_s = datetime.fromisoformat(captured_at).timestamp()
        if made.unix_s - made.boot_s <= captured_s <= made.unix_s:
            return {**sent, "captured_at": utc(captured_s + right.unix_s - made.unix_s)}
    return {**sent, "clock_synced": False}


def utc(unix_s: float) -> str:
    """ISO 8601 in UTC with milliseconds; a file may be dated beyond the years 1 to 9999, which become the nearest."""
    within_s = min(max(unix_s, _FIRST_S), _LAST_S)
    return datetime.fromtimestamp(within_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
