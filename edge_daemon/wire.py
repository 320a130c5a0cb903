"""One message on a byte stream: a JSON line with `type`, `fields` and `payload_bytes`, then the payload.

The same format joins the daemon with every child. It knows neither what the messages mean nor what kind
of stream carries them. Anything that is not a message raises WireError: only an end of the stream exactly
between two messages is an end.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from edge_daemon.errors import WireError

MAX_HEADER_BYTES = 1 << 20
"""Longest JSON line: an offer of a thousand long file names fits."""
MAX_PAYLOAD_BYTES = 64 << 20
"""Largest payload; a 512-px RGB frame has 0.8 MB."""


@dataclass(frozen=True)
class Message:
    """What travels."""

    type: str
    fields: dict[str, Any]
    payload: bytes = b""


def encode(message: Message) -> bytes:
    """The header line of a message followed by its payload.

    Non-ASCII characters are escaped, so that file names that are not valid UTF-8 (surrogates) survive.
    """
    header = {"type": message.type, "fields": message.fields, "payload_bytes": len(message.payload)}
    return json.dumps(header).encode("ascii") + b"\n" + message.payload


def read(stream: BinaryIO) -> Message | None:
    """Read one message from a blocking stream; None at the end of the stream."""
    line = stream.readline(MAX_HEADER_BYTES)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise WireError(f"the stream ended within a header, or the header is longer than {MAX_HEADER_BYTES} bytes")
    type_, fields, payload_bytes = _parse(line)
    payload = stream.read(payload_bytes)
    if len(payload) != payload_bytes:
        raise WireError(f"the stream ended {payload_bytes - len(payload)} bytes before the end of a message")
    return Message(type_, fields, payload)


async def read_async(reader: asyncio.StreamReader) -> Message | None:
    """Read one message from an asyncio stream (made with `limit=MAX_HEADER_BYTES`); None at its end."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise WireError("the stream ended within a header") from error
    except asyncio.LimitOverrunError as error:
        raise WireError(f"a header is longer than {MAX_HEADER_BYTES} bytes") from error
    type_, fields, payload_bytes = _parse(line)
    try:
        return Message(type_, fields, await reader.readexactly(payload_bytes))
    except asyncio.IncompleteReadError as error:
        raise WireError("the stream ended within a payload") from error


def _parse(line: bytes) -> tuple[str, dict[str, Any], int]:
    """Type, fields and payload length of a header line."""
    try:
        header = json.loads(line)
        type_, fields, payload_bytes = header["type"], header["fields"], header["payload_bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"not a message header: {line[:80]!r}") from error
    if not (isinstance(type_, str) and isinstance(fields, dict) and isinstance(payload_bytes, int)):
        raise WireError(f"not a message header: {line[:80]!r}")
    if not 0 <= payload_bytes <= MAX_PAYLOAD_BYTES or isinstance(payload_bytes, bool):
        raise WireError(f"a payload of {payload_bytes} bytes is not allowed")
    return type_, fields, payload_bytes
