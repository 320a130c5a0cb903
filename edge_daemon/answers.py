"""What an answer in words means: yes or no, a number, one of a few choices; and when a change is believed. Pure.

A value that cannot be told for certain is UNKNOWN: an automation that waits is better than one that is wrong. The
words themselves are always published beside the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

AnswerType = Literal["text", "yes_no", "number", "choice"]
Value = bool | int | float | str
UNKNOWN = "unknown"
"""The value of an answer that says nothing, or more than one thing."""

YES = frozenset({"yes", "yeah", "yep", "true"})
NO = frozenset({"no", "nope", "false"})
NEGATIONS = frozenset({"no", "not", "never", "neither", "nor", "none", "without"})
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
SMALL_NUMBERS = {match[0]: number for number, match in enumerate(re.finditer(r"\w+", NUMBER_WORDS))}
NOTHING = frozenset({"no", "none", "nobody", "nothing"})
"""Zero, where no other number is said: "There are no cats."."""
LARGER_NUMBERS = re.compile(r"(thir|for|fif|six|seven|eigh|nine)ty|(hundred|thousand|million|dozen)s?|half|couple|pair")
"""What is left of these makes a number of which only a part would be read."""
DIGITS = re.compile(
    r"(?<![\w.,:/-])-?(?:[0-9]{1,3}(?:,[0-9]{3}){1,4}|[0-9]{1,15})(?:\.[0-9]{1,15})?(?![\w:/-]|[.,][0-9])"
)
"""1, -2, 3.5, 1,234; not 12:30, 2-3, 1.2.3, 3rd."""
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def value_of(words: str, kind: AnswerType, choices: Sequence[str] = ()) -> Value:
    """The value of an answer: true or false, an int or a float, one of `choices`, the words, or UNKNOWN."""
    if kind == "yes_no":
        return _yes_no(words)
    if kind == "number":
        return _number(words)
    if kind == "choice":
        return _choice(words, choices)
    return words.strip() or UNKNOWN


def _yes_no(words: str) -> Value:
    """The first word decides: "No, there is a cat" is a no; "The gate is closed" is none of both."""
    said = _words(words)[:3]
    if len(said) == 3 and said[1] in ("and", "or") and {said[0], said[2]} == {"yes", "no"}:
        return UNKNOWN
    if not said or said[0] not in YES | NO:
        return UNKNOWN
    return said[0] in YES


def _number(words: str) -> Value:
    """The one number that is said, in digits or as a word up to twenty, in dozens as well."""
    text = words.casefold().replace("no one", "nobody")
    text = re.sub(r"\bhalf a dozen\b", "six", text)
    text = re.sub(r"\b(?:(\w+) )?dozen\b", _dozens, text)
    said = _words(text)
    if any(LARGER_NUMBERS.fullmatch(word) for word in said):
        return UNKNOWN
    numbers = {SMALL_NUMBERS[word] for word in said if word in SMALL_NUMBERS} | set(_digits(text))
    if len(numbers) == 1:
        return numbers.pop()
    nothing = not numbers and not any(character.isdigit() for character in text)
    return 0 if nothing and NOTHING & set(said) else UNKNOWN


def _dozens(match: re.Match[str]) -> str:
    before = match[1]
    count = 1 if before in (None, "a", "one") else SMALL_NUMBERS.get(before, 0)
    if count:
        return str(12 * count)
    if before.isdecimal() and before.isascii() and len(before) < 10:
        return str(12 * int(before))
    return match[0]  # "several dozen": LARGER_NUMBERS finds it


def _digits(text: str) -> Iterator[int | float]:
    for match in DIGITS.finditer(text):
        plain = match[0].replace(",", "")
        yield float(plain) if "." in plain else int(plain)


def _choice(words: str, choices: Sequence[str]) -> Value:
    """The one choice that is said, whatever stands around it; a longer one hides those within it."""
    said = folded(words)
    spans = {choice: _places(folded(choice), said) for choice in choices}
    longest = sorted(((len(folded(c)), at, c) for c, starts in spans.items() for at in starts), reverse=True)
    taken: set[int] = set()
    found: set[str] = set()
    for length, at, choice in longest:
        covered = set(range(at, at + length))
        if not covered & taken:
            taken |= covered
            found.add(choice)
    denied = any(word in NEGATIONS or word.endswith("n't") for at, word in enumerate(said) if at not in taken)
    return found.pop() if len(found) == 1 and not denied else UNKNOWN


def choices_problem(choices: Sequence[str]) -> str:
    """Why answers cannot be told apart by these choices, in words; empty if they can."""
    if len(choices) < 2:
        return "type choice needs at least two choices, such as choices: [open, closed]"
    seen: dict[tuple[str, ...], str] = {}
    for choice in choices:
        words = folded(choice)
        if not words:
            return f"the choice {choice!r} has no word in it"
        if words == (UNKNOWN,):
            return f"the choice {choice!r} is reserved for unclear answers; leave it out"
        if words in seen:
            return f"the choices {seen[words]!r} and {choice!r} cannot be told apart"
        seen[words] = choice
    return ""


def folded(text: str) -> tuple[str, ...]:
    """The words of a text without case, punctuation and plural: what makes two choices the same."""
    return tuple(_singular(word) for word in _words(text))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and re.search(r"[^sui]s$", word) else word


def _places(part: tuple[str, ...], whole: tuple[str, ...]) -> list[int]:
    """Where a sequence of words begins within another."""
    return [at for at in range(len(whole) - len(part) + 1) if part and whole[at : at + len(part)] == part]


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in WORD.findall(text.casefold())]


class Settling:
    """Believes a change when enough pictures say the same.

    An UNKNOWN between them neither confirms nor breaks; as many in a row as a change takes are a change themselves,
    so that a value does not outlive what it was seen on. With one picture every value is believed at once.
    """

    def __init__(self, frames: int) -> None:
        """`frames` pictures make a change. At the beginning the value is UNKNOWN."""
        self._frames = frames
        self._settled: Value = UNKNOWN
        self._candidate: Value = UNKNOWN
        self._sightings = 0
        self._unknowns = 0

    def settle(self, value: Value) -> Value:
        """Take the value of the next picture; what is believed now."""
        if value == UNKNOWN:
            self._unknowns += 1
            if self._unknowns >= self._frames:
                self._settled, self._sightings = UNKNOWN, 0
            return self._settled
        self._unknowns = 0
        if value != self._candidate:
            self._candidate, self._sightings = value, 0
        self._sightings += 1
        if self._sightings >= self._frames:
            self._settled = value
        return self._settled
