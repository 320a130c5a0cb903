"""What answers in words mean, and when a change is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.answers import UNKNOWN, AnswerType, Settling, Value, folded, value_of

GATE = ("open", "closed", "half open")
COLOURS = ("red", "dark red", "blue")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("Yes.", True),
        ("yes", True),
        (" YES, there is a cat.", True),
        ("Yeah", True),
        ("True", True),
        ("No", False),
        ("no, the gate is open", False),
        ("Nope.", False),
        ("false", False),
        ("Yes, there is no gate", True),
        ("Yes or no", UNKNOWN),
        ("No and yes.", UNKNOWN),
        ("Yes or no, I cannot tell.", UNKNOWN),
        ("Yes, and a dog.", True),
        ("Yes, with no doubt.", True),
        ("The gate is closed.", UNKNOWN),
        ("There is no doubt.", UNKNOWN),
        ("Not possible to tell", UNKNOWN),
        ("Yesterday", UNKNOWN),
        ("None", UNKNOWN),
        ("I only know coloured shapes.", UNKNOWN),
        ("", UNKNOWN),
        ("?", UNKNOWN),
    ],
)
def test_yes_or_no(words: str, value: Value) -> None:
    assert value_of(words, "yes_no") is value or value_of(words, "yes_no") == value == UNKNOWN


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("3", 3),
        ("3.", 3),
        ("There are 12 cats.", 12),
        ("three", 3),
        ("Twenty people", 20),
        ("zero", 0),
        ("No", 0),
        ("none", 0),
        ("No one is here", 0),
        ("There are no cats.", 0),
        ("No, there are 2", 2),
        ("2 (two)", 2),
        ("-5 °C", -5),
        ("21.5°C", 21.5),
        ("50%", 50),
        ("1,234", 1234),
        ("1,234.5", 1234.5),
        ("a dozen", 12),
        ("Two dozen eggs", 24),
        ("10 dozen", 120),
        ("half a dozen", 6),
        ("several dozen", UNKNOWN),
        ("dozens", UNKNOWN),
        ("a couple", UNKNOWN),
        ("two hundred", UNKNOWN),
        ("No hundreds", UNKNOWN),
        ("thirty", UNKNOWN),
        ("twenty-one", UNKNOWN),
        ("two and a half", UNKNOWN),
        ("2 or 3", UNKNOWN),
        ("2-3", UNKNOWN),
        ("3 of 5", UNKNOWN),
        ("12:30", UNKNOWN),
        ("1.2.3", UNKNOWN),
        ("1,5", UNKNOWN),
        ("3/4", UNKNOWN),
        ("3rd", UNKNOWN),
        ("no 4x4", UNKNOWN),
        ("A 3D printer", UNKNOWN),
        ("1e5", UNKNOWN),
        ("٣", UNKNOWN),
        ("٣ dozen", UNKNOWN),
        ("9" * 5000, UNKNOWN),
        ("9" * 5000 + " dozen", UNKNOWN),
        ("many", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_numbers(words: str, value: Value) -> None:
    assert value_of(words, "number") == value
    assert type(value_of(words, "number")) is type(value)


@pytest.mark.parametrize(
    ("choices", "words", "value"),
    [
        (GATE, "open", "open"),
        (GATE, "The gate is OPEN.", "open"),
        (GATE, "Half-open", "half open"),
        (GATE, "It's half open", "half open"),
        (GATE, "It is not open", UNKNOWN),
        (GATE, "It isn't open", UNKNOWN),
        (GATE, "It isn’t open", UNKNOWN),
        (GATE, "open or closed", UNKNOWN),
        (GATE, "open, half open", UNKNOWN),
        (GATE, "opening", UNKNOWN),
        (GATE, "", UNKNOWN),
        (COLOURS, "the red one", "red"),
        (COLOURS, "The dark red one.", "dark red"),
        (COLOURS, "red, not dark", UNKNOWN),
        (COLOURS, "dark blue", "blue"),
        (("Cat", "Dog"), "Cats", "Cat"),
        (("cats", "dogs"), "A dog.", "dogs"),
        (("bus", "car"), "Buses", "bus"),
        (("lorries", "cars"), "a lorry", "lorries"),
        (("no parking", "parking"), "No parking!", "no parking"),
        (("1", "10"), "10", "10"),
        (("Café",), "the café", "Café"),
        ((), "open", UNKNOWN),
    ],
)
def test_choices(choices: tuple[str, ...], words: str, value: str) -> None:
    assert value_of(words, "choice", choices) == value


def test_a_text_is_itself() -> None:
    assert value_of(" A red car. \n", "text") == "A red car."
    assert value_of(" ", "text") == UNKNOWN


@given(st.text(), st.sampled_from(["text", "yes_no", "number", "choice"]), st.lists(st.text(max_size=9), max_size=4))
def test_any_words_have_a_value_of_their_type(words: str, kind: AnswerType, choices: list[str]) -> None:
    value = value_of(words, kind, choices)
    if kind == "text":
        assert value in (words.strip(), UNKNOWN)
    elif kind == "choice":
        assert value == UNKNOWN or value in choices
    elif value != UNKNOWN:
        assert type(value) in ((bool,) if kind == "yes_no" else (int, float))


@given(st.integers(-(10**15) + 1, 10**15 - 1))
def test_every_whole_number_is_read(number: int) -> None:
    assert value_of(f"There are {number}.", "number") == number


@given(st.sampled_from(["{}", "The {}.", "{}s", "It looks {} to me", "A {} one!"]), st.sampled_from(COLOURS))
def test_a_choice_is_found_in_any_sentence(sentence: str, choice: str) -> None:
    assert value_of(sentence.format(choice).upper(), "choice", COLOURS) == choice


def test_choices_that_cannot_be_told_apart_fold_to_the_same() -> None:
    assert folded("The Red-Cars!") == folded("the red car") != folded("the red cart")
    assert folded("?!") == ()


# ---- when a change is believed --------------------------------------------------------------------------


def settled(frames: int, *values: Value) -> list[Value]:
    settling = Settling(frames)
    return [settling.settle(value) for value in values]


def test_with_one_picture_every_value_is_believed() -> None:
    values: list[Value] = [True, False, UNKNOWN, False, True, UNKNOWN]
    assert settled(1, *values) == values


def test_a_change_takes_its_pictures() -> None:
    assert settled(2, True, True, False, True, False, False) == [UNKNOWN, True, True, True, True, False]


def test_an_unknown_neither_confirms_nor_breaks() -> None:
    assert settled(2, True, UNKNOWN, True) == [UNKNOWN, UNKNOWN, True]
    assert settled(3, True, True, UNKNOWN, UNKNOWN, True) == [UNKNOWN] * 4 + [True]


def test_a_value_does_not_outlive_what_it_was_seen_on() -> None:
    assert settled(2, True, True, UNKNOWN, UNKNOWN, True) == [UNKNOWN, True, True, UNKNOWN, UNKNOWN]


VALUES: st.SearchStrategy[Value] = st.sampled_from([True, False, UNKNOWN])


@given(st.integers(1, 4), st.lists(VALUES, max_size=30))
def test_what_is_believed_was_seen_and_stays_until_as_much_speaks_against_it(frames: int, values: list[Value]) -> None:
    before: Value = UNKNOWN
    for at, now in enumerate(settled(frames, *values)):
        last = values[max(0, at + 1 - frames) : at + 1]
        if len(last) == frames and len(set(last)) == 1:
            assert now == values[at]
        if now != before:
            known = [value for value in values[: at + 1] if value != UNKNOWN]
            assert values[at] == now
            assert last == [UNKNOWN] * frames if now == UNKNOWN else known[-frames:] == [now] * frames
        before = now
