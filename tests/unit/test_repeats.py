"""The same words as the last time: published, marked or left out."""

from __future__ import annotations

from typing import Any

import pytest

from edge_daemon.repeats import Repeats, Repetition
from edge_daemon.source_config import Question
from edge_daemon.values import Values


def caption(words: str) -> dict[str, Any]:
    return {"task": "caption", "caption": words}


def answer(task: str, words: str) -> dict[str, Any]:
    return {"task": task, "answer": words}


def test_a_repeated_caption_is_marked_and_another_one_is_not() -> None:
    repeats = Repeats()
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [caption("a cat")]
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [{**caption("a cat"), "unchanged": True}]
    assert repeats.handled("porch", "mark", [caption("a dog")], 1) == [caption("a dog")]
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [caption("a cat")], "not the last one"


def test_sources_and_tasks_have_words_of_their_own() -> None:
    repeats = Repeats()
    repeats.handled("porch", "mark", [caption("yes"), answer("open", "yes")], 1)
    assert repeats.handled("yard", "mark", [caption("yes")], 1) == [caption("yes")]
    assert repeats.handled("porch", "suppress", [caption("yes"), answer("open", "no")], 1) == [answer("open", "no")]


def test_what_is_published_anyway_is_remembered_all_the_same() -> None:
    repeats = Repeats()
    assert repeats.handled("porch", "publish", [caption("a cat")] * 2, 1) == [caption("a cat")] * 2
    assert repeats.handled("porch", "suppress", [caption("a cat")], 1) == []


def test_boxes_are_never_repeated() -> None:
    found = {"task": "car", "objects": [], "count": 0}
    assert Repeats().handled("porch", "suppress", [found, found], 1) == [found, found]


def asked(question: str, words: str) -> dict[str, Any]:
    return {**answer("q", words), "question": question}


@pytest.mark.parametrize("wish", ["mark", "suppress"])
def test_the_answer_to_another_question_is_no_repetition(wish: Repetition) -> None:
    repeats = Repeats()
    repeats.handled("porch", wish, [caption("a cat"), asked("Is the gate open?", "No")], 1)
    other = asked("Is anybody there?", "No")
    assert repeats.handled("porch", wish, [caption("a dog"), other], 1) == [caption("a dog"), other]


def test_a_question_that_was_gone_meanwhile_is_answered_anew() -> None:
    """Its topic was taken off the broker."""
    repeats, question = Repeats(), asked("Is the gate open?", "No")
    for documents in ([caption("a cat"), question], [caption("a dog")], [caption("a cow"), question]):
        assert repeats.handled("porch", "suppress", documents, 1) == documents


def test_in_another_session_it_is_said_once_more() -> None:
    repeats = Repeats()
    said = [repeats.handled("porch", "suppress", [caption("a cat")], session) for session in (1, 1, 2, 2)]
    assert said == [[caption("a cat")], [], [{**caption("a cat"), "unchanged": True}], []]


@pytest.mark.parametrize("wish", ["mark", "suppress"])
def test_a_value_that_is_believed_at_the_second_picture_is_no_repetition(wish: Repetition) -> None:
    values, repeats = Values(), Repeats()
    question = Question(id="gate", ask="Is the gate open?", type="yes_no", for_frames=2)
    published: list[Any] = []
    for words in ["No.", "No.", "Yes.", "Yes.", "Yes."]:
        made = values.typed("porch", [question], [{**answer("gate", words), "finish_reason": "eos"}])
        new = [document for document in repeats.handled("porch", wish, made, 1) if "unchanged" not in document]
        published += [document["value"] for document in new]
    assert published == ["unknown", False, False, True]
