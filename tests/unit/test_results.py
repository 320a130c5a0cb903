"""From the worker's answer to the documents that subscribers read."""

from __future__ import annotations

import json
import uuid
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.clock import Stamp
from edge_daemon.messages import FileKey, Frame, Results, Task, TaskResult, WorkerReady
from edge_daemon.results import Answered, Captioned, Found, Origin, Result, published, result_id, results_of, utc

FILE = FileKey("yard/cat.jpg", 1_700_000_000_000_000_000, 4321)
FRAME = Frame(1_700_000_000.25, 512, 384, 4000, 3000, "00", 2.26, 31.26, FILE, b"")
ORIGIN = Origin("shed", "porch", FRAME, "file", 100.0)
WORKER = WorkerReady("demo-shapes", "knows shapes only", "float32", 256, 1, 2, 3, 0.5, 2, {})
CAPTION = Task("caption", "caption", "short")
QUESTION = Task("gate-open", "query", "Is the gate open?")
BOXES = Task("cats", "detect", "cat")
BOX = {"x_min": 0.123456, "y_min": 0.0, "x_max": 0.9, "y_max": 1.0}
SCHEMA = json.loads((Path(__file__).parents[2] / "configs/result.schema.json").read_text())
WHEN_SENT = {"seq": 1, "replayed": False}
"""What is known of a result only then."""


def outcome(task: Task, text: str = "", error: str = "") -> TaskResult:
    return TaskResult(task.id, task.kind, text, [BOX], 9, "eos", 10.26, 200.26, error)


def results(*outcomes: TaskResult) -> Results:
    return Results(list(outcomes), 80.26, 5)


def three() -> list[Result]:
    answer = results(outcome(CAPTION, "A cat."), outcome(QUESTION, "no"), outcome(BOXES))
    return results_of(ORIGIN, [CAPTION, QUESTION, BOXES], answer, WORKER, 100.5)


def test_a_caption() -> None:
    """To the byte, as subscribers of every version have it."""
    (result,) = results_of(ORIGIN, [CAPTION], results(outcome(CAPTION, "A cat.")), WORKER, 100.5)
    expected = {
        "schema": 1,
        "id": result_id(ORIGIN, CAPTION),
        "node": "shed",
        "source": "porch",
        "captured_at": "2023-11-14T22:13:20.250Z",
        "task": "caption",
        "caption": "A cat.",
        "length": "short",
        "file": "yard/cat.jpg",
        "model": "demo-shapes",
        "note": "knows shapes only",
        "engine": "torch",
        "precision": "float32",
        "tokens": 9,
        "finish_reason": "eos",
        "trigger": "file",
        "kv_tokens": 256,
        "latency_ms": {
            "capture": 2.3,
            "decode": 31.3,
            "encode": 80.3,
            "prefill": 10.3,
            "generate": 200.3,
            "total": 533.5,
        },
    }
    assert json.dumps(result.document()) == json.dumps(expected)
    unchanged = replace(result, unchanged=True).document()
    assert json.dumps(unchanged) == json.dumps({**expected, "unchanged": True})


def test_every_task_has_its_own_words() -> None:
    made = [result.document() for result in three()]
    assert [document["task"] for document in made] == ["caption", "gate-open", "cats"]
    assert (made[1]["question"], made[1]["answer"], made[1]["value"]) == ("Is the gate open?", "no", "no")
    assert (made[2]["target"], made[2]["count"]) == ("cat", 1)
    assert made[2]["objects"] == [{"x_min": 0.1235, "y_min": 0.0, "x_max": 0.9, "y_max": 1.0}]
    assert not any("caption" in document for document in made[1:])
    assert [result.words for result in three()] == ["A cat.", "no", "1 found"]


@pytest.mark.parametrize("value", ["no", "unknown", False, True, 0, 1.5])
def test_an_answer_that_has_a_type(value: bool | int | float | str) -> None:
    """What is false or 0 is said as well."""
    answered = three()[1]
    document = replace(answered, said=Answered("Is it?", "", value, "number", "cats")).document()
    said = {"question": "Is it?", "answer": "", "value": value, "type": "number", "unit": "cats"}
    assert document == {**answered.document(), **said}
    without = replace(answered, said=Answered("Is it?", "", value, "number")).document()
    assert without == {key: what for key, what in document.items() if key != "unit"}


@pytest.mark.parametrize("number", range(3))
def test_whatever_was_said_is_as_the_schema_promises(number: int) -> None:
    result = three()[number]
    for made in (result, replace(result, unchanged=True), replace(result, note=None, file=None)):
        jsonschema.validate({**made.document(), **WHEN_SENT}, SCHEMA)


def test_the_schema_has_the_names_of_a_result_and_no_others() -> None:
    names = {field.name for kind in (Result, Captioned, Answered, Found) for field in fields(kind)}
    assert names - {"said"} == SCHEMA["properties"].keys() - {"schema", "clock_synced", *WHEN_SENT}


def test_the_picture_of_a_command_has_no_source() -> None:
    (result,) = results_of(replace(ORIGIN, source=""), [CAPTION], results(outcome(CAPTION)), WORKER, 100.5)
    assert result.document().keys() == three()[0].document().keys() - {"source"}


def test_what_has_no_outcome_becomes_no_result() -> None:
    answers = results(outcome(CAPTION, error="no room in the cache"), outcome(QUESTION, "no"))
    made = results_of(ORIGIN, [CAPTION, QUESTION], answers, WORKER, 100.5)
    assert [result.task for result in made] == ["gate-open"]


def test_what_is_not_known_is_not_there() -> None:
    origin = replace(ORIGIN, frame=replace(FRAME, file=None))
    (result,) = results_of(origin, [CAPTION], results(outcome(CAPTION)), replace(WORKER, note=""), 100.5)
    assert three()[0].document().keys() - result.document().keys() == {"file", "note"}


def test_the_length_of_the_cache_is_the_one_that_held() -> None:
    capped = replace(results(outcome(CAPTION)), kv_positions=100)
    (result,) = results_of(ORIGIN, [CAPTION], capped, WORKER, 100.5)
    assert (result.kv_tokens, three()[0].kv_tokens) == (100, WORKER.kv_positions)


def test_the_same_file_and_task_have_the_same_id() -> None:
    assert result_id(ORIGIN, CAPTION) == result_id(replace(ORIGIN, taken_s=5.0, trigger="change"), CAPTION)
    assert uuid.UUID(result_id(ORIGIN, CAPTION)).version == 5


@pytest.mark.parametrize(
    "other",
    [
        replace(ORIGIN, node="barn"),
        replace(ORIGIN, source="gate"),
        *(
            replace(ORIGIN, frame=replace(FRAME, file=file))
            for file in (
                replace(FILE, name="yard/dog.jpg"),
                replace(FILE, mtime_ns=FILE.mtime_ns + 1),
                replace(FILE, size_bytes=1),
            )
        ),
    ],
)
def test_anything_else_has_another_id(other: Origin) -> None:
    assert result_id(other, CAPTION) != result_id(ORIGIN, CAPTION)


def test_another_task_has_another_id() -> None:
    assert len({result_id(ORIGIN, task) for task in (CAPTION, replace(CAPTION, text="normal"), QUESTION, BOXES)}) == 4


@pytest.mark.parametrize(
    "origin", [replace(ORIGIN, frame=replace(FRAME, file=None)), replace(ORIGIN, trigger="request")]
)
def test_a_frame_without_a_file_and_what_is_asked_for_are_never_the_same(origin: Origin) -> None:
    assert result_id(origin, CAPTION) != result_id(origin, CAPTION)


@pytest.mark.parametrize("name", [b"\xff.jpg".decode("utf-8", "surrogateescape"), "\ud800", "\0"])
def test_any_file_name_has_an_id(name: str) -> None:
    uuid.UUID(result_id(replace(ORIGIN, frame=replace(FRAME, file=replace(FILE, name=name))), CAPTION))


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
        (1_700_000_000.9996, "2023-11-14T22:13:20.999Z"),
        (1e15, "9999-12-31T00:00:00.000Z"),
        (-1e15, "0001-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_utc_and_never_an_error(unix_s: float, text: str) -> None:
    assert utc(unix_s) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_time_has_the_same_form(unix_s: float) -> None:
    assert len(utc(unix_s)) == len("1970-01-01T00:00:00.000Z")


# ---- when it is published ---------------------------------------------------------------------------------

MADE = Stamp(1000.0, 100.0, "boot", False)
LATER = Stamp(1.8e9, 160.0, "boot", True)


@pytest.mark.parametrize("synced", [True, None])
def test_what_was_made_by_a_right_clock_is_sent_as_it_is(synced: bool | None) -> None:
    document = {"captured_at": utc(950.0), "caption": "A cat."}
    sent = published(document, True, replace(MADE, synced=synced), LATER)
    assert sent == {**document, "replayed": True}


@pytest.mark.parametrize(
    ("captured_s", "now", "expected_s"),
    [
        (950.0, LATER, 1.8e9 - 110.0),
        (900.0, LATER, 1.8e9 - 160.0),
        (1000.0, LATER, 1.8e9 - 60.0),
        (899.0, LATER, None),  # before this boot, or dated by somebody else
        (1001.0, LATER, None),
        (950.0, replace(LATER, synced=False), None),
        (950.0, replace(LATER, synced=None), None),
        (950.0, replace(LATER, boot_id="another"), None),
    ],
)
def test_what_was_made_before_the_time_was_known_is_corrected_or_marked(
    captured_s: float, now: Stamp, expected_s: float | None
) -> None:
    document = {"captured_at": utc(captured_s), "caption": "A cat."}
    expected = {"clock_synced": False} if expected_s is None else {"captured_at": utc(expected_s)}
    assert published(document, False, MADE, now) == {**document, "replayed": False, **expected}
