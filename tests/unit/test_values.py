"""What a source's answers are worth, picture after picture."""

from __future__ import annotations

from typing import Any

import pytest

from edge_daemon.source_config import Question
from edge_daemon.values import Values

GATE = Question(id="gate", ask="Is the gate open?", type="yes_no", for_frames=2)
COUNT = Question(id="count", ask="How many?", type="number", unit="cats")
WORDS = Question(id="words", ask="What is it?")


def answered(task: str, words: str, finish_reason: str = "eos") -> dict[str, Any]:
    return {"task": task, "answer": words, "value": words, "finish_reason": finish_reason}


def test_a_value_has_the_type_of_its_question() -> None:
    made = [{"task": "caption", "caption": "A cat."}, answered("count", "Two cats."), answered("words", " A cat.")]
    caption, count, words = Values().typed("porch", [GATE, COUNT, WORDS], made)
    assert caption == made[0]
    assert count == {**made[1], "value": 2, "type": "number", "unit": "cats"}
    assert words == {**made[2], "value": "A cat.", "type": "text"}
    assert made[1]["value"] == "Two cats.", "the documents that were handed over are as they were"


def test_a_change_is_believed_when_enough_pictures_of_its_source_say_it() -> None:
    values = Values()

    def said(source: str, words: str, question: Question = GATE) -> Any:
        (document,) = values.typed(source, [question], [answered("gate", words)])
        assert document["answer"] == words
        return document["value"]

    assert [said("porch", words) for words in ("No.", "No.", "Yes.", "No.", "Yes.", "Yes.")] == [
        *("unknown", False, False, False, False, True)
    ]
    assert said("yard", "No.") == "unknown", "another source"
    assert said("porch", "No.") is True
    assert said("porch", "No.") is False
    assert said("porch", "Yes.", GATE.model_copy(update={"for_frames": 1})) is True, "another question begins anew"


def test_a_source_is_doubted_while_its_last_picture_said_what_is_not_believed() -> None:
    values, doubted = Values(), []
    for words in ("No.", "No.", "Yes.", "No.", "Who knows?", "Who knows?"):
        values.typed("porch", [GATE], [answered("gate", words)])
        doubted.append("porch" in values.doubted)
    assert doubted == [True, False, True, False, True, False]
    values.typed("porch", [GATE], [answered("gate", "Yes.")])
    values.typed("porch", [GATE], [])
    assert not values.doubted, "the question had no answer: one more picture settles nothing"


def test_what_is_not_among_the_questions_is_left_alone() -> None:
    made = [answered("ask", "Yes."), {"task": "gate", "target": "gate", "objects": [], "count": 0}]
    assert Values().typed("porch", [GATE, COUNT], made) == made


@pytest.mark.parametrize(
    ("question", "words", "finish_reason", "value"),
    [
        (COUNT, "There are 1", "length", "unknown"),
        (COUNT, "There are 1", "memory", "unknown"),
        (COUNT, "There are 12 cats", "length", 12),
        (COUNT, "There are 12", "repetition", 12),
        (WORDS, "A black ca", "length", "A black ca"),
    ],
)
def test_the_last_word_of_what_was_cut_does_not_count(
    question: Question, words: str, finish_reason: str, value: Any
) -> None:
    (document,) = Values().typed("porch", [question], [answered(question.id, words, finish_reason)])
    assert (document["value"], document["answer"]) == (value, words)
