"""Commands over MQTT: what becomes a request, and in which words anything else is refused."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon import commands
from edge_daemon.command_values import LARGEST_PICTURE_BYTES, Picture
from edge_daemon.commands import (
    KINDS,
    LARGEST_PAYLOAD_BYTES,
    LARGEST_WORDS_BYTES,
    SETTINGS,
    Ask,
    Caption,
    Command,
    Detect,
    HealthCheck,
    LogLevel,
    Pause,
    Reload,
    Request,
    RestartWorker,
    Resume,
    Set,
    Stats,
    answered,
    parse,
    parse_setting,
    refused,
)
from edge_daemon.errors import CommandError
from edge_daemon.source_config import Question

JPEG = b"\xff\xd8\xff\xe0 and so on"
PNG = b"\x89PNG\r\n\x1a\n and so on"
PORCH = ("porch",)
TWO = ("porch", "barn")


def payload(**values: Any) -> bytes:
    return json.dumps(values).encode()


def refusal(name: str, said: bytes, sources: tuple[str, ...] = TWO, *, retained: bool = False) -> CommandError:
    with pytest.raises(CommandError) as caught:
        parse(name, said, sources, retained=retained)
    return caught.value


# ---- what becomes a request -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "request_"),
    [
        ("caption", b"barn", Caption("barn", None)),
        ("caption", b' "barn"\n', Caption("barn", None)),
        ("caption", payload(source="barn", length="normal"), Caption("barn", None, "normal")),
        ("caption", JPEG, Caption(None, Picture(JPEG))),
        ("caption", PNG, Caption(None, Picture(PNG))),
        ("ask", payload(source="barn", question=" Why? "), Ask("barn", None, Question(id="question", ask="Why?"))),
        (
            "ask",
            payload(source="barn", question="Open?", type="choice", choices=["open", "closed"]),
            Ask("barn", None, Question(id="question", ask="Open?", type="choice", choices=("open", "closed"))),
        ),
        ("detect", payload(source="barn", what="red car"), Detect("barn", None, "red car")),
        ("pause", b"", Pause()),
        ("pause", b"{}", Pause()),
        ("pause", b"15", Pause(minutes=15)),
        ("pause", payload(source="barn", minutes=0.5), Pause("barn", 0.5)),
        ("resume", b"", Resume()),
        ("resume", b"barn", Resume("barn")),
        ("set", payload(source="barn", enabled=False), Set("barn", enabled=False)),
        ("set", payload(source="barn", interval_s=30, length="long"), Set("barn", interval_s=30, length="long")),
        (
            "set",
            payload(source="barn", questions=[{"id": "gate", "ask": "Open?", "type": "yes_no"}]),
            Set("barn", questions=(Question(id="gate", ask="Open?", type="yes_no"),)),
        ),
        ("set", payload(source="barn", questions=[]), Set("barn", questions=())),
        ("reload", b"", Reload()),
        ("stats", b"{}", Stats()),
        ("health_check", b" \n", HealthCheck()),
        ("restart_worker", b"", RestartWorker()),
        ("log_level", b"debug", LogLevel("debug")),
        ("log_level", payload(level="warning"), LogLevel("warning")),
    ],
)
def test_requests(name: str, said: bytes, request_: Request) -> None:
    assert parse(name, said, TWO) == Command(name, None, request_)


@pytest.mark.parametrize("name", ["caption", "ask", "detect"])
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_a_picture_in_base64(name: str, start: str) -> None:
    words = {"ask": {"question": "Why?"}, "detect": {"what": "car"}}.get(name, {})
    lines = base64.encodebytes(PNG * 20).decode()
    request_ = parse(name, payload(picture=start + lines, **words), TWO).request
    assert isinstance(request_, Caption | Ask | Detect)
    assert (request_.source, request_.picture) == (None, Picture(PNG * 20))


def test_the_only_source_need_not_be_named() -> None:
    assert parse("caption", b"", PORCH).request == Caption("porch", None)
    assert parse("detect", b"a red car", PORCH).request == Detect("porch", None, "a red car")
    assert parse("ask", "Größer als 5?".encode(), PORCH).request == Ask(
        "porch", None, Question(id="question", ask="Größer als 5?")
    )


@pytest.mark.parametrize("said", ["5", "true", "null", "1e5", "porch"])
def test_a_bare_word_is_a_text_where_a_text_is_wanted(said: str) -> None:
    request_ = parse("ask", said.encode(), PORCH).request
    assert isinstance(request_, Ask)
    assert request_.question.ask == said


@pytest.mark.parametrize("transaction", ["", "a-1", "ü", 0, -5, 2**62])
def test_a_transaction_comes_back(transaction: str | int) -> None:
    command = parse("stats", payload(transaction=transaction), TWO)
    assert command.transaction == transaction
    assert json.loads(answered(command.transaction, {"a": 1})) == {
        "transaction": transaction,
        "status": "ok",
        "data": {"a": 1},
    }
    error = refusal("stats", payload(transaction=transaction, x=1))
    assert json.loads(refused(error)) == {"transaction": transaction, "status": "error", "error": str(error)}


def test_no_transaction_is_no_transaction() -> None:
    assert json.loads(answered(None, {})) == {"status": "ok", "data": {}}
    assert json.loads(refused(CommandError("why"))) == {"status": "error", "error": "why"}


@pytest.mark.parametrize(
    ("what", "said", "name", "request_"),
    [
        ("trigger", b"PRESS", "caption", Caption("porch", None)),
        ("trigger", b"\xff\xff", "caption", Caption("porch", None)),
        ("enabled/set", b"ON", "set", Set("porch", enabled=True)),
        ("enabled/set", b"off", "set", Set("porch", enabled=False)),
        ("interval/set", b"30", "set", Set("porch", interval_s=30)),
        ("interval/set", b"0.5", "set", Set("porch", interval_s=0.5)),
        ("question/set", b"5", "ask", Ask("porch", None, Question(id="question", ask="5"))),
        ("question/set", b'{"a": 1}', "ask", Ask("porch", None, Question(id="question", ask='{"a": 1}'))),
    ],
)
def test_settings(what: str, said: bytes, name: str, request_: Request) -> None:
    assert parse_setting("porch", what, said, TWO) == Command(name, None, request_)


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("captoin", b"", "unknown command 'captoin'; did you mean 'caption'?"),
        ("zzz", b"", "unknown command 'zzz'; known here: caption, ask, detect, pause"),
        ("caption", b"", "name a source (porch, barn) or send a picture"),
        ("caption", b"proch", "source: unknown source 'proch'; did you mean 'porch'?"),
        ("caption", payload(source=5), "source: unknown source 5; known here: porch, barn"),
        ("caption", payload(source=["porch"]), "source: unknown source a list"),
        ("caption", payload(source="porch", lenght="short"), "unknown key 'lenght'; did you mean 'length'?"),
        ("caption", payload(source="porch", transactoin=1), "unknown key 'transactoin'; did you mean 'transaction'?"),
        (
            "caption",
            payload(source="porch", length="huge"),
            "length: 'huge' is not allowed; use one of short, normal, long",
        ),
        ("caption", payload(source="porch", picture=base64.b64encode(PNG).decode()), "source and picture cannot be"),
        ("caption", payload(picture="not base64!"), "picture: not valid base64"),
        ("caption", payload(picture="!" + base64.b64encode(PNG).decode()), "picture: not valid base64"),
        ("caption", payload(picture="data:image/png,abc"), "picture: neither a JPEG nor a PNG"),
        ("caption", payload(picture="R0lGODlh"), "picture: neither a JPEG nor a PNG"),
        ("caption", payload(picture=5), "picture: a picture in base64 is required"),
        ("caption", b"GIF89a\xff", "the payload is neither UTF-8 text nor a JPEG or PNG picture"),
        ("caption", b"{", "not valid JSON: Expecting property name enclosed in double quotes (character 2)"),
        ("caption", b"[1]", "this must be a JSON object, such as {}"),
        ("caption", b'{"source": NaN}', "not valid JSON: a number too large, or nesting too deep"),
        ("caption", b"[" * 100_000, "not valid JSON: a number too large, or nesting too deep"),
        ("caption", b'{"transaction": ' + b"9" * 5000 + b"}", "not valid JSON: a number too large, or nesting too"),
        ("ask", JPEG, "only caption takes a bare picture; otherwise send JSON with the picture in base64"),
        ("ask", payload(source="porch"), "question: this key is required"),
        ("ask", payload(source="porch", question=" "), "question: this must be text of 1 to 1000 characters"),
        ("ask", payload(source="porch", question="x" * 1001), "question: this must be text of 1 to 1000 characters"),
        (
            "ask",
            payload(source="porch", question="Is the cat in? \ud83d"),
            "question: the text contains half a character",
        ),
        ("ask", payload(source="porch", question="Open?", type="bool"), "type: input should be 'text', 'yes_no'"),
        ("ask", payload(source="porch", question="Open?", type="choice"), "type choice needs at least two choices"),
        ("ask", payload(source="porch", question="Open?", choices=["a"]), "choices work only with type choice"),
        ("detect", payload(source="porch"), "what: this key is required, for example car"),
        ("pause", b"-1", "minutes: this must be a number from 0 to 10080, not -1"),
        ("pause", b"soon", "minutes: this must be a number from 0 to 10080, not 'soon'"),
        ("pause", b"true", "minutes: this must be a number from 0 to 10080, not "),
        ("pause", payload(minutes=10**400), "minutes: this must be a number from 0 to 10080, not 1000"),
        ("pause", b'{"minutes": 1e999}', "minutes: this must be a number from 0 to 10080, not inf"),
        ("set", payload(enabled=True), "source: this key is required"),
        ("set", payload(source="porch"), "nothing to set; name at least one of enabled, interval_s, length, questions"),
        (
            "set",
            payload(source="porch", enabled="on"),
            "enabled: this must be true or false (on its own topic ON or OFF)",
        ),
        ("set", payload(source="porch", interval=5), "unknown key 'interval'; did you mean 'interval_s'?"),
        ("set", payload(source="porch", interval_s=10**6), "interval_s: this must be a number from 0 to 86400"),
        ("set", payload(source="porch", questions=5), "questions: this must be a list"),
        ("set", payload(source="porch", questions=[{"id": "a"}]), "questions: 0.ask: this key is required"),
        (
            "set",
            payload(source="porch", questions=[{"id": "a", "ask": "b", "\ud800": 1}]),
            "questions: 0: input should be a valid string, unable to parse raw data as a unicode string",
        ),
        ("reload", b"now", "this must be a JSON object, such as {}"),
        ("reload", payload(source="porch"), "unknown key 'source'; known here: transaction"),
        ("log_level", b"", "level: this key is required"),
        ("log_level", b"loud", "level: 'loud' is not allowed; use one of debug, info, warning, error"),
        ("stats", payload(transaction="x" * 201), "transaction: use text of at most 200 characters, or a whole number"),
        ("stats", payload(transaction=True), "transaction: use text of at most 200 characters, or a whole number"),
        ("stats", payload(transaction={}), "transaction: use text of at most 200 characters, or a whole number"),
        ("stats", payload(transaction=2**63), "transaction: use text of at most 200 characters, or a whole number"),
    ],
)
def test_what_is_refused_is_told_why(name: str, said: bytes, words: str) -> None:
    assert str(refusal(name, said)).startswith(words)


def test_a_retained_command_is_an_accident() -> None:
    words = "a command must not be retained, or the broker repeats it for ever; send it without retain"
    assert str(refusal("caption", b"porch", retained=True)) == words
    with pytest.raises(CommandError, match="must not be retained"):
        parse_setting("porch", "trigger", b"", TWO, retained=True)


@pytest.mark.parametrize(
    ("source", "what", "said", "words"),
    [
        ("barm", "trigger", b"", "source: unknown source 'barm'; did you mean 'barn'?"),
        ("porch", "enable/set", b"ON", "unknown topic 'enable/set' of a source; did you mean 'enabled/set'?"),
        ("porch", "enabled/set", b"1", "enabled: this must be true or false"),
        ("porch", "enabled/set", b"\xff", "the payload is neither UTF-8 text nor"),
        ("porch", "interval/set", b"", "interval_s: this must be a number from 0 to 86400, not ''"),
        ("porch", "interval/set", b"NaN", "interval_s: this must be a number from 0 to 86400, not 'NaN'"),
        ("porch", "question/set", b" ", "question: this must be text of 1 to 1000 characters"),
    ],
)
def test_settings_that_are_refused(source: str, what: str, said: bytes, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_setting(source, what, said, TWO)
    assert str(caught.value).startswith(words)


def test_nothing_is_larger_than_it_may_be() -> None:
    largest = JPEG.ljust(LARGEST_PICTURE_BYTES, b"x")
    assert parse("caption", largest, TWO).request == Caption(None, Picture(largest))
    in_base64 = payload(picture=base64.b64encode(largest).decode(), transaction="t" * 200)
    assert parse("caption", in_base64, TWO).request == Caption(None, Picture(largest))
    words = f"picture: {LARGEST_PICTURE_BYTES + 1} bytes; at most {LARGEST_PICTURE_BYTES} are allowed"
    assert str(refusal("caption", largest + b"x")) == words
    too_much = refusal("caption", b" " * (LARGEST_PAYLOAD_BYTES + 1))
    assert (
        str(too_much)
        == f"the payload has {LARGEST_PAYLOAD_BYTES + 1} bytes; at most {LARGEST_PAYLOAD_BYTES} are allowed"
    )


MANY = LARGEST_WORDS_BYTES // 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("set", payload(source="porch", questions=[0] * MANY)),
        ("set", payload(source="porch", questions=[{"id": "a", "ask": "b", "x" * LARGEST_WORDS_BYTES: 0}])),
        ("ask", payload(source="porch", question="Open?", type="choice", choices=[0] * MANY)),
        ("ask", payload(picture="x" * LARGEST_WORDS_BYTES, question="Open?", type="choice", choices=[0] * MANY)),
        ("stats", b" " * (LARGEST_WORDS_BYTES + 1)),
    ],
    ids=["wrong questions", "a long key", "wrong choices", "beside a picture", "nothing"],
)
def test_only_a_picture_may_be_large(name: str, said: bytes) -> None:
    """Each wrong value would cost a kilobyte and ten microseconds before the first is named."""
    words = f"the payload has [0-9]+ bytes( besides the picture)?; at most {LARGEST_WORDS_BYTES} are allowed"
    assert re.fullmatch(words, str(refusal(name, said)))


def test_a_setting_is_not_large() -> None:
    with pytest.raises(CommandError, match=f"at most {LARGEST_WORDS_BYTES} are allowed"):
        parse_setting("porch", "question/set", b"[" * (LARGEST_WORDS_BYTES + 1), TWO)
    parse_setting("porch", "trigger", b"[" * (LARGEST_WORDS_BYTES + 1), TWO)


def test_a_picture_does_not_fill_the_log() -> None:
    assert "and so on" not in repr(parse("caption", JPEG, TWO))


# ---- anything -------------------------------------------------------------------------------------------

KEYS = sorted({key for kind in KINDS.values() for key in kind.checks} | {"transaction", "id", "ask", "x", "\ud800"})
WORDS = st.sampled_from(["porch", "short", "debug", "Open?", "yes_no", "choice", "R0lGODlh", "\ud800", ""]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
PAYLOADS = st.binary(max_size=30) | (OBJECTS | JSON).map(lambda value: json.dumps(value).encode())


def outcome(command: Command | CommandError) -> None:
    """What holds for any command and any error."""
    if isinstance(command, CommandError):
        document = json.loads(refused(command))
        assert document["status"] == "error"
        assert document["error"].encode()
        assert len(document["error"]) < 2000
    else:
        assert json.loads(answered(command.transaction, {})).get("transaction") == command.transaction
        assert command.name in KINDS


@given(st.sampled_from([*KINDS, "x"]), PAYLOADS, st.sampled_from([(), PORCH, TWO]), st.booleans())
def test_any_payload_is_a_command_or_a_reason(name: str, said: bytes, sources: tuple[str, ...], retained: bool) -> None:
    try:
        outcome(parse(name, said, sources, retained=retained))
    except CommandError as error:
        outcome(error)


@given(st.sampled_from(["porch", "x"]), st.sampled_from([*SETTINGS, "x"]), PAYLOADS)
def test_any_setting_is_a_command_or_a_reason(source: str, what: str, said: bytes) -> None:
    try:
        outcome(parse_setting(source, what, said, TWO))
    except CommandError as error:
        outcome(error)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("depth", [10, 500, 900, 5000])
def test_nesting_is_no_error_of_ours(name: str, depth: int) -> None:
    for key in KEYS[:-1]:
        said = f'{{"{key}": {"[" * depth}{"]" * depth}}}'.encode()
        assert refusal(name, said)
        assert refusal(name, said.replace(b"[", b'{"id":').replace(b"]", b"}").replace(b":}", b":1}"))


def test_every_command_of_the_design_is_there() -> None:
    assert list(commands.KINDS) == [
        *("caption", "ask", "detect", "pause", "resume", "set", "reload", "stats", "health_check"),
        *("restart_worker", "log_level"),
    ]
