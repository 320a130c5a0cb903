"""Single values of a command over MQTT, checked. Pure.

A check takes a value as it came out of JSON and the names of the sources. It gives the value as it is used, or raises
CommandError with what would be right.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from edge_daemon import config
from edge_daemon.choices import CaptionLength, LogLevel
from edge_daemon.errors import CommandError, ConfigError
from edge_daemon.nearest import hint
from edge_daemon.source_config import Question

Check = Callable[[Any, Sequence[str]], Any]
LARGEST_PICTURE_BYTES = 4 << 20
"""A photograph of 12 megapixels; brokers often take less (mosquitto 2.1: 2 000 000 bytes a packet)."""
LONGEST_TEXT = 1000
"""Characters of a question, as in the configuration."""
LONGEST_PAUSE_MINUTES = 7 * 24 * 60
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""How the files begin that can be sent: JPEG, PNG."""
LENGTHS, LOG_LEVELS = get_args(CaptionLength), get_args(LogLevel)


@dataclass(frozen=True)
class Picture:
    """A picture that came with a request; only its first bytes have been looked at."""

    payload: bytes = field(repr=False)


def source(value: Any, sources: Sequence[str]) -> str:
    """The name of a source."""
    if isinstance(value, str) and value in sources:
        return value
    raise CommandError(f"unknown source {shown(value)}{hint(value[:80] if isinstance(value, str) else '', sources)}")


def picture(value: Any, _: Sequence[str]) -> Picture:
    """A picture: its bytes, or a text in base64, also as a data URL."""
    payload = value if isinstance(value, bytes) else _from_base64(value)
    if len(payload) > LARGEST_PICTURE_BYTES:
        raise CommandError(f"{len(payload)} bytes; at most {LARGEST_PICTURE_BYTES} are allowed")
    if not payload.startswith(STARTS):
        raise CommandError("neither a JPEG nor a PNG")
    return Picture(payload)


def _from_base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise CommandError("a picture in base64 is required")
    text = value.partition("base64,")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise CommandError("not valid base64") from None


def text(value: Any, _: Sequence[str]) -> str:
    """A text of a line or more."""
    if not isinstance(value, str) or not 0 < len(value.strip()) <= LONGEST_TEXT:
        raise CommandError(f"this must be text of 1 to {LONGEST_TEXT} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise CommandError("the text contains half a character (a lone surrogate)")
    return value.strip()


def one_of(words: Sequence[str]) -> Callable[[Any, Sequence[str]], str]:
    """One of a few words."""

    def check(value: Any, _: Sequence[str]) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise CommandError(f"{shown(value)} is not allowed; use one of {', '.join(words)}")

    return check


def number(least: float, most: float) -> Callable[[Any, Sequence[str]], float]:
    """A number within bounds."""

    def check(value: Any, _: Sequence[str]) -> float:
        if type(value) not in (int, float) or not least <= value <= most:  # NaN is not within any bounds
            raise CommandError(f"this must be a number from {least:g} to {most:g}, not {shown(value)}")
        return float(value)

    return check


def truth(value: Any, _: Sequence[str]) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise CommandError(f"this must be true or false (on its own topic ON or OFF), not {shown(value)}")
    return value


def whatever(value: Any, _: Sequence[str]) -> Any:
    """Anything; what follows checks it."""
    return value


def questions(value: Any, _: Sequence[str]) -> tuple[Question, ...]:
    """Questions as in the configuration."""
    return _questions(value, "questions")


def question(values: dict[str, Any]) -> Question:
    """One question from its keys."""
    (typed,) = _questions([values], "questions.0")
    return typed


def _questions(values: Any, start: str) -> tuple[Question, ...]:
    try:
        return config.questions(values)
    except ConfigError as error:
        raise CommandError(str(error).removeprefix(start).lstrip(".: ")) from None


def shown(value: Any) -> str:
    """A wrong value, at no great length."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list | bytes) else ascii(value)[:80]
