"""Questions about a scene, as people ask them, each with its one right answer.

A kind of question is a function (scene, random stream) → Question, or None when the scene gives no clear
answer to what it drew. Nothing here knows tokens or the model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from edge_daemon.demo.language import Target, capital, place, short_caption, with_article
from edge_daemon.demo.scenes import COLOURS, ORDER_MARGIN, SHAPES, Scene, Thing

REFUSAL = "I only know coloured shapes."
"""The answer to any question with a word that the model does not know."""
FOREIGN = "\N{REPLACEMENT CHARACTER}"
"""Stands for an unknown word when a question is made up; no tokenizer entry has it."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "shape": ("object", "thing"),
    "shapes": ("objects", "things"),
    "picture": ("image", "photo"),
    "large": ("big",),
    "purple": ("violet",),
}
"""Words that a question may have instead."""
SYNONYM_CHANCE = 0.2

PHRASES: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {name}?",
        "What colour is the {name} in the picture?",
        "What is the colour of the {name}?",
        "Which colour is the {name}?",
        "Which colour does the {name} have?",
        "What color is the {name}?",
        "Tell me the colour of the {name}.",
    ),
    "shape": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} shape?",
        "What shape is the {colour} shape?",
    ),
    "size": (
        "Is the {name} large or small?",
        "Is the {name} big or small?",
        "Is the {name} small or large?",
        "How large is the {name}?",
        "How big is the {name}?",
        "What size is the {name}?",
        "What is the size of the {name}?",
    ),
    "where": (
        "Where is the {name}?",
        "Where is the {name} in the picture?",
        "Where in the picture is the {name}?",
        "Where do you see the {name}?",
        "What is the position of the {name}?",
    ),
    "count": (
        "How many {plural} are there?",
        "How many {plural} are there in the picture?",
        "How many {plural} are in the picture?",
        "How many {plural} do you see?",
        "How many {plural} can you see?",
        "How many {plural}?",
        "Count the {plural}.",
        "What is the number of {plural}?",
    ),
    "exists": (
        "Is there {a_name}?",
        "Is there {a_name} in the picture?",
        "Do you see {a_name}?",
        "Can you see {a_name}?",
        "Does the picture show {a_name}?",
        "Are there any {plural}?",
        "Are there any {plural} in the picture?",
    ),
    "is_colour": ("Is the {name} {colour}?", "Is the colour of the {name} {colour}?"),
    "left of": ("Is the {a} left of the {b}?", "Is the {a} to the left of the {b}?"),
    "right of": ("Is the {a} right of the {b}?", "Is the {a} to the right of the {b}?"),
    "above": ("Is the {a} above the {b}?", "Is the {a} over the {b}?", "Is the {a} higher than the {b}?"),
    "below": ("Is the {a} below the {b}?", "Is the {a} under the {b}?", "Is the {a} lower than the {b}?"),
    "background": (
        "What colour is the background?",
        "What is the colour of the background?",
        "Which colour does the background have?",
        "What background is there?",
    ),
    "describe": (
        "What is in the picture?",
        "What is in this picture?",
        "What do you see?",
        "What can you see?",
        "What does the picture show?",
        "Describe the picture.",
        "What is this?",
        "What shapes are there?",
        "Which shapes are in the picture?",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and of which kind it is."""

    kind: str
    text: str
    answer: str


Axis = Callable[[Thing], float]
SIDES: dict[str, Axis] = {
    "left of": lambda thing: thing.x,
    "right of": lambda thing: -thing.x,
    "above": lambda thing: thing.y,
    "below": lambda thing: -thing.y,
}
"""A thing stands on that side of another when its value is smaller."""


def random_target(scene: Scene, rng: random.Random, *attributes: str) -> Target:
    """A target with a random choice of `attributes` fixed; more often than not there is such a thing."""
    model = rng.choice(scene.objects)
    shape, colour, size = model.shape, model.colour, model.size
    if rng.random() < 0.35:
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    kept = [a for a in attributes if rng.random() < {"shape": 0.8, "colour": 0.5, "size": 0.2}[a]]
    return Target(
        shape if "shape" in kept else None,
        colour if "colour" in kept else None,
        size if "size" in kept else None,
    )


def _phrase(rng: random.Random, kind: str, **words: str) -> str:
    return reworded(rng.choice(PHRASES[kind]).format(**words), rng)


def reworded(text: str, rng: random.Random) -> str:
    """The same text with some words replaced by synonyms."""

    def other(match: re.Match[str]) -> str:
        words = SYNONYMS.get(match.group())
        return rng.choice(words) if words and rng.random() < SYNONYM_CHANCE else match.group()

    return re.sub(r"\w+", other, text)


def presupposed(target: Target, scene: Scene, answer: Callable[[Thing], str]) -> str:
    """The answer about the one thing that is meant, or what is wrong with asking for it."""
    found = target.found(scene)
    if not found:
        return f"There is no {target.name}."
    return answer(found[0]) if len(found) == 1 else f"There are {len(found)} {target.plural}."


def proper_name(thing: Thing, scene: Scene) -> str | None:
    """The shortest name of colour and shape, with the size if need be, that means this thing alone."""
    for target in (Target(thing.shape, thing.colour), Target(thing.shape, thing.colour, thing.size)):
        if len(target.found(scene)) == 1:
            return target.name
    return None


def _yes(truth: bool) -> str:
    return "Yes" if truth else "No"


def _colour(scene: Scene, rng: random.Random) -> Question:
    target = random_target(scene, rng, "shape", "size")
    answer = presupposed(target, scene, lambda thing: capital(thing.colour))
    return Question("colour", _phrase(rng, "colour", name=target.name), answer)


def _shape(scene: Scene, rng: random.Random) -> Question:
    colour = rng.choice([*(thing.colour for thing in scene.objects), rng.choice(list(COLOURS))])
    answer = presupposed(Target(None, colour), scene, lambda thing: capital(with_article(thing.shape)))
    return Question("shape", _phrase(rng, "shape", colour=colour), answer)


def _size(scene: Scene, rng: random.Random) -> Question:
    target = random_target(scene, rng, "shape", "colour")
    answer = presupposed(target, scene, lambda thing: capital(thing.size))
    return Question("size", _phrase(rng, "size", name=target.name), answer)


def _where(scene: Scene, rng: random.Random) -> Question:
    target = random_target(scene, rng, "shape", "colour", "size")
    answer = presupposed(target, scene, lambda thing: capital(place(thing)))
    return Question("where", _phrase(rng, "where", name=target.name), answer)


def _count(scene: Scene, rng: random.Random) -> Question:
    target = Target() if rng.random() < 0.3 else random_target(scene, rng, "shape", "colour", "size")
    return Question("count", _phrase(rng, "count", plural=target.plural), str(len(target.found(scene))))


def _exists(scene: Scene, rng: random.Random) -> Question:
    target = random_target(scene, rng, "shape", "colour", "size")
    text = _phrase(rng, "exists", a_name=with_article(target.name), plural=target.plural)
    return Question("exists", text, _yes(bool(target.found(scene))))


def _is_colour(scene: Scene, rng: random.Random) -> Question:
    target = Target(random_target(scene, rng, "shape").shape)
    colour = rng.choice([rng.choice(list(COLOURS)), rng.choice(scene.objects).colour])
    answer = presupposed(target, scene, lambda thing: _yes(thing.colour == colour))
    return Question("is_colour", _phrase(rng, "is_colour", name=target.name, colour=colour), answer)


def _pair(scene: Scene, rng: random.Random) -> tuple[Thing, Thing, str, str] | None:
    """Two things and their names, in a random order."""
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    name_a, name_b = proper_name(a, scene), proper_name(b, scene)
    return (a, b, name_a, name_b) if name_a and name_b else None


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    pair = _pair(scene, rng)
    side = rng.choice(list(SIDES))
    if pair is None or abs(SIDES[side](pair[0]) - SIDES[side](pair[1])) < ORDER_MARGIN:
        return None
    a, b, name_a, name_b = pair
    return Question("relation", _phrase(rng, side, a=name_a, b=name_b), _yes(SIDES[side](a) < SIDES[side](b)))


def _background(scene: Scene, rng: random.Random) -> Question:
    return Question("background", _phrase(rng, "background"), capital(scene.background))


def _describe(scene: Scene, rng: random.Random) -> Question:
    return Question("describe", _phrase(rng, "describe"), short_caption(scene))


def _foreign(scene: Scene, rng: random.Random) -> Question:
    """A question of another kind with some words unknown, or one that is nearly all unknown words."""
    words = random_question(scene, rng, KNOWN_KINDS).text.split()
    share = rng.choice([0.15, 0.5, 0.9])
    words = [FOREIGN if rng.random() < share else word for word in words]
    words.insert(rng.randrange(len(words) + 1), FOREIGN)
    return Question("foreign", " ".join(words), REFUSAL)


Kind = Callable[[Scene, random.Random], Question | None]
KNOWN_KINDS: dict[Kind, int] = {
    _colour: 10,
    _shape: 8,
    _size: 6,
    _where: 9,
    _count: 12,
    _exists: 10,
    _is_colour: 6,
    _relation: 10,
    _background: 3,
    _describe: 3,
}
"""How often each kind is drawn."""
KINDS: dict[Kind, int] = {**KNOWN_KINDS, _foreign: 6}


def random_question(scene: Scene, rng: random.Random, kinds: dict[Kind, int] | None = None) -> Question:
    """One question about the scene, of any kind or of `kinds`."""
    weights = KINDS if kinds is None else kinds
    while True:
        question = rng.choices(list(weights), list(weights.values()))[0](scene, rng)
        if question is not None:
            return question
