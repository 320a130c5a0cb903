"""What a source's answers are worth, picture after picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_daemon.messages import FinishReason
from edge_daemon.results import Answered
from edge_daemon.source_config import Question
from edge_daemon.values import Values
from tests.said import answer, caption, nothing

GATE = Question(id="gate", ask="Is the gate open?", type="yes_no", for_frames=2)
COUNT = Question(id="count", ask="How many?", type="number", unit="cats")
WORDS = Question(id="words", ask="What is it?")


def test_a_value_has_the_type_of_its_question() -> None:
    made = [caption("A cat."), answer("count", "Two cats.", COUNT.ask), answer("words", " A cat.", WORDS.ask)]
    said = Values().typed("porch", [GATE, COUNT, WORDS], made)
    assert said == [
        made[0],
        replace(made[1], said=Answered("How many?", "Two cats.", 2, "number", "cats")),
        replace(made[2], said=Answered("What is it?", " A cat.", "A cat.", "text")),
    ]
    assert made[1] == answer("count", "Two cats.", COUNT.ask), "the results that were handed over are as they were"


def test_a_change_is_believed_when_enough_pictures_of_its_source_say_it() -> None:
    values = Values()

    def said(source: str, words: str, question: Question = GATE) -> Any:
        (made,) = values.typed(source, [question], [answer("gate", words)])
        assert isinstance(made.said, Answered)
        assert made.said.answer == words
        return made.said.value

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
        values.typed("porch", [GATE], [answer("gate", words)])
        doubted.append("porch" in values.doubted)
    assert doubted == [True, False, True, False, True, False]
    values.typed("porch", [GATE], [answer("gate", "Yes.")])
    values.typed("porch", [GATE], [])
    assert not values.doubted, "the question had no answer: one more picture settles nothing"


def test_what_is_not_among_the_questions_is_left_alone() -> None:
    made = [answer("ask", "Yes."), nothing("gate"), caption("Yes.")]
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
    question: Question, words: str, finish_reason: FinishReason, value: Any
) -> None:
    made = answer(question.id, words, question.ask, finish_reason)
    expected = Answered(question.ask, words, value, question.type, question.unit)
    assert Values().typed("porch", [question], [made]) == [replace(made, said=expected)]
