"""The same words as the last time: published, marked or left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_daemon.repeats import Repeats, Repetition
from edge_daemon.results import Answered, Captioned, Result, Said
from edge_daemon.source_config import Question
from edge_daemon.values import Values
from tests.said import answer, caption, nothing, result


def unchanged(made: Result) -> Result:
    return replace(made, unchanged=True)


def test_a_repeated_caption_is_marked_and_another_one_is_not() -> None:
    repeats = Repeats()
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [caption("a cat")]
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [unchanged(caption("a cat"))]
    assert repeats.handled("porch", "mark", [caption("a dog")], 1) == [caption("a dog")]
    assert repeats.handled("porch", "mark", [caption("a cat")], 1) == [caption("a cat")], "not the last one"


def test_sources_and_tasks_have_words_of_their_own() -> None:
    repeats = Repeats()
    repeats.handled("porch", "mark", [caption("yes"), answer("open", "yes")], 1)
    assert repeats.handled("yard", "mark", [caption("yes")], 1) == [caption("yes")]
    assert repeats.handled("porch", "suppress", [caption("yes"), answer("open", "no")], 1) == [answer("open", "no")]


def test_what_is_published_anyway_is_remembered_all_the_same() -> None:
    repeats = Repeats()
    for session in (1, 1, 2):
        assert repeats.handled("porch", "publish", [caption("a cat")], session) == [caption("a cat")]
    assert repeats.handled("porch", "suppress", [caption("a cat")], 2) == []


def test_boxes_are_never_repeated() -> None:
    repeats, found = Repeats(), nothing("car")
    assert [repeats.handled("porch", "suppress", [found], 1) for _ in range(2)] == [[found], [found]]


def asked(question: str, words: str) -> Result:
    return answer("q", words, question)


@pytest.mark.parametrize("wish", ["mark", "suppress"])
def test_the_answer_to_another_question_is_no_repetition(wish: Repetition) -> None:
    repeats = Repeats()
    repeats.handled("porch", wish, [caption("a cat"), asked("Is the gate open?", "No")], 1)
    other = asked("Is anybody there?", "No")
    assert repeats.handled("porch", wish, [caption("a dog"), other], 1) == [caption("a dog"), other]


def test_a_question_that_was_gone_meanwhile_is_answered_anew() -> None:
    """Its topic was taken off the broker."""
    repeats, question = Repeats(), asked("Is the gate open?", "No")
    for made in ([caption("a cat"), question], [caption("a dog")], [caption("a cow"), question]):
        assert repeats.handled("porch", "suppress", made, 1) == made


def test_whoever_asks_gets_the_whole_answer_and_it_is_what_the_next_one_repeats() -> None:
    repeats, asked_for = Repeats(), replace(caption("a cat"), trigger="request")
    said = [repeats.handled("porch", "suppress", [made], 1) for made in (asked_for, asked_for, caption("a cat"))]
    assert said == [[asked_for], [asked_for], []]


@pytest.mark.parametrize(
    ("said", "then"),
    [
        (Answered("How many?", "2", 2, "number", "cats"), Answered("How many?", "2", 2, "number", "dogs")),
        (Answered("What?", "two", "two", "text"), Answered("What?", "two", "two", "choice")),
        (Captioned("a cat", "short"), Captioned("a cat", "normal")),
    ],
)
def test_the_same_words_to_other_settings_are_no_repetition(said: Said, then: Said) -> None:
    """The broker would go on holding what was said by the settings before."""
    repeats = Repeats()
    repeats.handled("porch", "suppress", [result("q", said)], 1)
    assert repeats.handled("porch", "suppress", [result("q", then)], 1) == [result("q", then)]


def test_in_another_session_it_is_said_once_more() -> None:
    repeats = Repeats()
    said = [repeats.handled("porch", "suppress", [caption("a cat")], session) for session in (1, 1, 2, 2)]
    assert said == [[caption("a cat")], [], [unchanged(caption("a cat"))], []]


@pytest.mark.parametrize("wish", ["mark", "suppress"])
def test_a_value_that_is_believed_at_the_second_picture_is_no_repetition(wish: Repetition) -> None:
    values, repeats = Values(), Repeats()
    question = Question(id="gate", ask="Is the gate open?", type="yes_no", for_frames=2)
    published: list[object] = []
    for words in ["No.", "No.", "Yes.", "Yes.", "Yes."]:
        made = values.typed("porch", [question], [answer("gate", words)])
        documents = [made.document() for made in repeats.handled("porch", wish, made, 1)]
        published += [document["value"] for document in documents if "unchanged" not in document]
    assert published == ["unknown", False, False, True]
