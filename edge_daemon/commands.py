"""Commands over MQTT as data: from a payload to a request, or to the reason why not; and their answers. Pure.

A payload is a JSON object, a bare word for the main key (`porch`, `15`), nothing, or a picture as it is. Whatever it
holds, it becomes a Command or a CommandError, and nothing else happens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from edge_daemon import command_values as check
from edge_daemon.command_values import Check, Picture
from edge_daemon.errors import CommandError
from edge_daemon.nearest import hint
from edge_daemon.source_config import LONGEST_INTERVAL_S, Question
from edge_daemon.topics import json_bytes

LARGEST_WORDS_BYTES = 64 << 10
"""All that is not a picture. Megabytes of it, checked value by value, would take gigabytes and minutes."""
LARGEST_PAYLOAD_BYTES = check.LARGEST_PICTURE_BYTES * 4 // 3 + LARGEST_WORDS_BYTES
"""The largest picture in base64, and what stands around it."""
NUMBERS = ("minutes", "interval_s")
"""Keys of which a bare word is a number."""
LONGEST_TRANSACTION = 200
LARGEST_TRANSACTION = 1 << 63

Transaction = str | int | None
"""Whatever the sender wants to recognise the answer by."""


@dataclass(frozen=True)
class Caption:
    """A caption now: of the current frame of a source, or of the picture that came along."""

    source: str | None
    picture: Picture | None
    length: str | None = None


@dataclass(frozen=True)
class Ask:
    """One question, asked once."""

    source: str | None
    picture: Picture | None
    question: Question


@dataclass(frozen=True)
class Detect:
    """Where something is."""

    source: str | None
    picture: Picture | None
    what: str


@dataclass(frozen=True)
class Pause:
    """No captions: of one source or of all, for a while or until they are resumed."""

    source: str | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Resume:
    """The end of a pause."""

    source: str | None = None


@dataclass(frozen=True)
class Set:
    """What holds for a source from now on; None leaves a setting as it is."""

    source: str
    enabled: bool | None = None
    interval_s: float | None = None
    length: str | None = None
    questions: tuple[Question, ...] | None = None


@dataclass(frozen=True)
class LogLevel:
    """How much is logged."""

    level: str


@dataclass(frozen=True)
class Reload:
    """The configuration file, read again."""


@dataclass(frozen=True)
class Stats:
    """What health counts."""


@dataclass(frozen=True)
class HealthCheck:
    """The whole health document."""


@dataclass(frozen=True)
class RestartWorker:
    """The model's process, ended and started again."""


Request = Caption | Ask | Detect | Pause | Resume | Set | LogLevel | Reload | Stats | HealthCheck | RestartWorker


@dataclass(frozen=True)
class Command:
    """A request, and by which name its answer is recognised."""

    name: str
    transaction: Transaction
    request: Request


@dataclass(frozen=True)
class Kind:
    """What a command takes."""

    checks: Mapping[str, Check]
    """Key → (value, names of the sources) → checked value. Raises CommandError."""
    make: Callable[..., Request]
    main: str = ""
    """The key that a bare word stands for."""


def parse(name: str, payload: bytes, sources: Sequence[str], *, retained: bool = False) -> Command:
    """The command in a payload of `request/<name>`. Raises CommandError, with the transaction where there is one."""
    _refuse_retained(retained)
    if name not in KINDS:
        raise CommandError(f"unknown command {name[:80]!r}{hint(name[:80], list(KINDS))}")
    return _command(name, _values(name, payload), sources)


def parse_setting(source: str, what: str, payload: bytes, sources: Sequence[str], *, retained: bool = False) -> Command:
    """The command in a payload of `<source>/trigger` or `<source>/<setting>/set`. Raises CommandError."""
    _refuse_retained(retained)
    if what not in SETTINGS:
        raise CommandError(f"unknown topic {what[:80]!r} of a source{hint(what[:80], list(SETTINGS))}")
    name, key = SETTINGS[what]
    if not key:  # whatever is written to a trigger pulls it
        return _command(name, {"source": source}, sources)
    _refuse_long(len(payload), LARGEST_WORDS_BYTES)
    said = _decoded(payload).strip()
    value = {"ON": True, "OFF": False}.get(said.upper(), said) if key == "enabled" else _bare(key, said)
    return _command(name, {"source": source, key: value}, sources)


def _refuse_retained(retained: bool) -> None:
    if retained:
        raise CommandError("a command must not be retained, or the broker repeats it for ever; send it without retain")


def _command(name: str, values: dict[str, Any], sources: Sequence[str]) -> Command:
    kind = KINDS[name]
    transaction = _transaction(values.pop("transaction", None))
    try:
        checked = {key: _checked(key, value, kind, sources) for key, value in values.items()}
        if "picture" in kind.checks:
            checked |= _subject(checked, sources)
        return Command(name, transaction, kind.make(**checked))
    except CommandError as error:
        raise CommandError(str(error), transaction) from None


def answered(transaction: Transaction, data: Mapping[str, Any]) -> bytes:
    """The answer to a command that was carried out."""
    return json_bytes({**_echo(transaction), "status": "ok", "data": dict(data)})


def refused(error: CommandError) -> bytes:
    """The answer to one that was not."""
    return json_bytes({**_echo(error.transaction), "status": "error", "error": str(error)})


def _echo(transaction: Transaction) -> dict[str, Any]:
    return {} if transaction is None else {"transaction": transaction}


# ---- from bytes to values -------------------------------------------------------------------------------


def _values(name: str, payload: bytes) -> dict[str, Any]:
    """The keys of a payload, as they came."""
    _refuse_long(len(payload), LARGEST_PAYLOAD_BYTES if "picture" in KINDS[name].checks else LARGEST_WORDS_BYTES)
    if payload.startswith(check.STARTS):
        if name != "caption":
            raise CommandError("only caption takes a bare picture; otherwise send JSON with the picture in base64")
        return {"picture": payload}
    said, main = _decoded(payload).strip(), KINDS[name].main
    if not said:
        return {}
    value = _json(said) if said[0] in "{[" else None
    if isinstance(value, dict):
        picture = value.get("picture")
        around = len(said) - (len(picture) if isinstance(picture, str) else 0)
        _refuse_long(around, LARGEST_WORDS_BYTES, " besides the picture")
        return value
    if not main or isinstance(value, list):
        raise CommandError("this must be a JSON object, such as {}")
    return {main: _bare(main, said)}


def _refuse_long(size_bytes: int, most_bytes: int, where: str = "") -> None:
    if size_bytes > most_bytes:
        raise CommandError(f"the payload has {size_bytes} bytes{where}; at most {most_bytes} are allowed")


def _decoded(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise CommandError("the payload is neither UTF-8 text nor a JPEG or PNG picture") from None


def _json(said: str) -> Any:
    try:
        return json.loads(said, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number too large, or nesting too deep"
        place = f" (character {error.pos + 1})" if isinstance(error, json.JSONDecodeError) else ""
        raise CommandError(f"not valid JSON: {reason}{place}") from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _bare(key: str, said: str) -> Any:
    """A bare word as the value of its key: a text, also in quotes, or a number where one is wanted."""
    try:
        value = json.loads(said, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return said
    is_wanted = isinstance(value, int | float) if key in NUMBERS else isinstance(value, str)
    return value if is_wanted else said


def _transaction(value: Any) -> Transaction:
    if value is None or (type(value) is int and -LARGEST_TRANSACTION <= value < LARGEST_TRANSACTION):
        return value
    if isinstance(value, str) and len(value) <= LONGEST_TRANSACTION:
        return value
    raise CommandError(f"transaction: use text of at most {LONGEST_TRANSACTION} characters, or a whole number")


# ---- from values to requests ----------------------------------------------------------------------------


def _checked(key: str, value: Any, kind: Kind, sources: Sequence[str]) -> Any:
    if key not in kind.checks:
        raise CommandError(f"unknown key {key[:80]!r}{hint(key[:80], [*kind.checks, 'transaction'])}")
    try:
        return kind.checks[key](value, sources)
    except CommandError as error:
        raise CommandError(f"{key}: {error}") from None


def _subject(checked: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """One source or one picture; the only source need not be named."""
    source, picture = checked.get("source"), checked.get("picture")
    if source is not None and picture is not None:
        raise CommandError("source and picture cannot be used together; leave one out")
    if source is None and picture is None:
        if len(sources) != 1:
            raise CommandError(f"name a source ({', '.join(sources)}) or send a picture")
        source = sources[0]
    return {"source": source, "picture": picture}


def _ask(question: str | None = None, **keys: Any) -> Ask:
    if question is None:
        raise CommandError("question: this key is required")
    subject = {key: keys.pop(key) for key in ("source", "picture")}
    return Ask(**subject, question=check.question({"id": "question", "ask": question, **keys}))


def _detect(what: str | None = None, **subject: Any) -> Detect:
    if what is None:
        raise CommandError("what: this key is required, for example car")
    return Detect(**subject, what=what)


def _set(source: str | None = None, **settings: Any) -> Set:
    if source is None:
        raise CommandError("source: this key is required")
    if not settings:
        raise CommandError("nothing to set; name at least one of " + ", ".join(SETTABLE))
    return Set(source, **settings)


def _log_level(level: str | None = None) -> LogLevel:
    if level is None:
        raise CommandError("level: this key is required")
    return LogLevel(level)


SUBJECT: dict[str, Check] = {"source": check.source, "picture": check.picture}
TYPED: dict[str, Check] = {"type": check.whatever, "choices": check.whatever}
SETTABLE: dict[str, Check] = {
    "enabled": check.truth,
    "interval_s": check.number(0, LONGEST_INTERVAL_S),
    "length": check.one_of(check.LENGTHS),
    "questions": check.questions,
}
KINDS = {
    "caption": Kind({**SUBJECT, "length": check.one_of(check.LENGTHS)}, Caption, "source"),
    "ask": Kind({**SUBJECT, "question": check.text, **TYPED}, _ask, "question"),
    "detect": Kind({**SUBJECT, "what": check.text}, _detect, "what"),
    "pause": Kind(
        {"source": check.source, "minutes": check.number(0, check.LONGEST_PAUSE_MINUTES)}, Pause, main="minutes"
    ),
    "resume": Kind({"source": check.source}, Resume, "source"),
    "set": Kind({"source": check.source, **SETTABLE}, _set),
    "reload": Kind({}, Reload),
    "stats": Kind({}, Stats),
    "health_check": Kind({}, HealthCheck),
    "restart_worker": Kind({}, RestartWorker),
    "log_level": Kind({"level": check.one_of(check.LOG_LEVELS)}, _log_level, "level"),
}
"""Every command."""
SETTINGS = {
    "trigger": ("caption", ""),
    "enabled/set": ("set", "enabled"),
    "interval/set": ("set", "interval_s"),
    "question/set": ("ask", "question"),
}
"""Topic below a source → the command that it gives, and the key that the payload stands for."""
