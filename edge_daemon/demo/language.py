"""The truth about a scene in words: captions, and what a detection target means.

Every text is a function of the scene alone, so there is one right answer. Questions are in `questions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_daemon.demo.scenes import Scene, Thing, row_of

COLUMNS = ("left", "", "right")
ROWS = ("top", "", "bottom")


@dataclass(frozen=True)
class Target:
    """What somebody speaks of: "large red circle", "circle", "red shape"; None is left open."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    @property
    def name(self) -> str:
        """The singular, without an article."""
        return " ".join(word for word in (self.size, self.colour, self.shape or "shape") if word)

    @property
    def plural(self) -> str:
        """The plural: "red crosses"."""
        return self.name + ("es" if self.name.endswith("s") else "s")

    def matches(self, thing: Thing) -> bool:
        """Whether this thing is meant."""
        pairs = ((self.shape, thing.shape), (self.colour, thing.colour), (self.size, thing.size))
        return all(asked is None or asked == has for asked, has in pairs)

    def found(self, scene: Scene) -> list[Thing]:
        """All things that are meant, in reading order; also the canonical order of detected boxes."""
        return [thing for thing in scene.objects if self.matches(thing)]


def with_article(name: str) -> str:
    """The name with its article: "a red circle", "an orange star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def sentence(text: str) -> str:
    """Capital at the start, full stop at the end."""
    return f"{capital(text)}."


def capital(text: str) -> str:
    """Capital at the start."""
    return text[0].upper() + text[1:]


def listed(items: list[str]) -> str:
    """The items in words: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def place(thing: Thing) -> str:
    """Which ninth of the picture the centre is in: "at the top left", "on the right", "in the centre"."""
    row, column = ROWS[int(thing.y * 3)], COLUMNS[int(thing.x * 3)]
    if row:
        return f"at the {row} {column}".strip()
    return f"on the {column}" if column else "in the centre"


def relation(first: Thing, second: Thing) -> str:
    """How the first of two things in reading order stands to the second."""
    return "left of" if row_of(first) == row_of(second) else "above"


def short_caption(scene: Scene) -> str:
    """One thing with its size; two with their relation; more in reading order."""
    things = scene.objects
    names = [with_article(f"{thing.colour} {thing.shape}") for thing in things]
    if len(things) == 1:
        said = with_article(f"{things[0].size} {things[0].colour} {things[0].shape}")
    elif len(things) == 2:
        said = f"{names[0]} {relation(*things)} {names[1]}"
    else:
        said = listed(names)
    return sentence(f"{said} on a {scene.background} background")


def normal_caption(scene: Scene) -> str:
    """How many shapes, and each with its size, colour and place, in reading order."""
    things = scene.objects
    said = [with_article(f"{t.size} {t.colour} {t.shape}") + f" {place(t)}" for t in things]
    count = "is 1 shape" if len(things) == 1 else f"are {len(things)} shapes"
    return sentence(f"there {count} on a {scene.background} background: {listed(said)}")
