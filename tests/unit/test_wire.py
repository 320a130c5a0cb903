"""The wire format: what goes in comes out, and whatever is not a message is a WireError and nothing else."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_daemon import wire
from edge_daemon.errors import WireError
from edge_daemon.wire import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Message

TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
"""Any text, also file names that are not UTF-8 (Python shows their bytes as lone surrogates)."""
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.builds(Message, type=TEXT, fields=st.dictionaries(TEXT, JSON, max_size=4), payload=st.binary())
RUNNER = asyncio.Runner()
"""One event loop for some thousand streams."""
VALID = wire.encode(Message("Frame", {"width_px": 4, "file": {"name": "a\udcff.jpg"}}, b"pixels\n{}\n"))


def read_all(data: bytes) -> list[Message]:
    """All messages of a blocking stream."""
    stream, found = io.BytesIO(data), []
    while (message := wire.read(stream)) is not None:
        found.append(message)
    return found


def read_all_async(data: bytes) -> list[Message]:
    """All messages of an asyncio stream."""

    async def scenario() -> list[Message]:
        reader = asyncio.StreamReader(limit=MAX_HEADER_BYTES)
        reader.feed_data(data)
        reader.feed_eof()
        found = []
        while (message := await wire.read_async(reader)) is not None:
            found.append(message)
        return found

    return RUNNER.run(scenario())


def outcome(data: bytes) -> list[Message] | None:
    """The messages in `data`, or None where it is none; both readers must agree, and raise WireError only."""
    outcomes: list[list[Message] | None] = []
    for reader in (read_all, read_all_async):
        try:
            outcomes.append(reader(data))
        except WireError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@given(st.lists(MESSAGES, max_size=4))
def test_messages_come_out_as_they_went_in(messages: list[Message]) -> None:
    assert outcome(b"".join(map(wire.encode, messages))) == messages


def test_a_header_is_one_line_of_ascii() -> None:
    line, _, payload = VALID.partition(b"\n")
    assert line.isascii()
    assert json.loads(line)["payload_bytes"] == len(payload)


def test_only_between_two_messages_is_an_end() -> None:
    data = VALID + VALID
    ends = [length for length in range(len(data) + 1) if outcome(data[:length]) is not None]
    assert ends == [0, len(VALID), 2 * len(VALID)]


@given(st.binary(max_size=200))
@example(b"\n")
@example(b"{}\n")
@example(b"[]\n")
@example(b"null\n")
@example(b'"type"\n')
@example(b"1\n")
@example(b'{"type": "a", "fields": {}, "payload_bytes": 0}')
@example(b'{"type": "a", "fields": [], "payload_bytes": 0}\n')
@example(b'{"type": 1, "fields": {}, "payload_bytes": 0}\n')
@example(b'{"type": "a", "fields": {}}\n')
@example("\ufeff{}\n".encode("utf-16"))
def test_garbage_is_a_wire_error(data: bytes) -> None:
    assert outcome(data) in (None, [])


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(position: int, value: int) -> None:
    outcome(VALID[:position] + bytes([value]) + VALID[position + 1 :])


@given(st.dictionaries(st.sampled_from(["type", "fields", "payload_bytes"]), JSON))
@settings(max_examples=50)
def test_a_header_of_other_json_is_refused(header: dict[str, Any]) -> None:
    assert outcome(json.dumps(header).encode() + b"\n") is None


@pytest.mark.parametrize("depth", [100, 900, 990, 1000, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"type":', b'{"type":"a","payload_bytes":0,"fields":{"x":['])
def test_brackets_without_end_are_refused(opening: bytes, depth: int) -> None:
    assert outcome(opening * depth + b"\n") is None


@pytest.mark.parametrize(
    "length", [-1, MAX_PAYLOAD_BYTES + 1, 10**30, "1", 1.0, True, None, [], pytest.param(float("inf"), id="inf")]
)
def test_a_payload_length_that_is_none_is_refused(length: object) -> None:
    assert outcome(json.dumps({"type": "a", "fields": {}, "payload_bytes": length}).encode() + b"\n" + b"x" * 9) is None


def test_a_number_of_ten_thousand_digits_is_refused() -> None:
    assert outcome(b'{"type": "a", "fields": {}, "payload_bytes": ' + b"1" * 10_000 + b"}\n") is None


def test_the_longest_header_is_read_and_a_longer_one_is_not() -> None:
    # asyncio counts without the newline, a file with it: both take this one
    room = MAX_HEADER_BYTES - len(wire.encode(Message("a", {"x": ""})))
    longest = Message("a", {"x": "x" * room})
    assert outcome(wire.encode(longest)) == [longest]
    assert outcome(wire.encode(Message("a", {"x": "x" * (room + 2)}))) is None


async def test_an_endless_line_is_refused_before_it_has_ended() -> None:
    reader = asyncio.StreamReader(limit=MAX_HEADER_BYTES)
    reader.feed_data(b"x" * (MAX_HEADER_BYTES + 2))  # and no end of the stream
    with pytest.raises(WireError, match="longer than"):
        await wire.read_async(reader)


def test_an_endless_line_is_not_kept() -> None:
    stream = io.BytesIO(b"x" * 4 * MAX_HEADER_BYTES)
    with pytest.raises(WireError, match="longer than"):
        wire.read(stream)
    assert stream.tell() == MAX_HEADER_BYTES
