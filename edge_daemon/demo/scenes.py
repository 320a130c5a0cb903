"""Scenes of coloured shapes on a plain background: made up from a random stream, drawn with Pillow.

A scene holds relative coordinates, so it can be drawn at any size. Whatever the words of `language` say
about a scene must have one right answer; the margins that ensure this are kept here, when a scene is made.
It knows nothing of words besides the names of shapes, colours and sizes, and nothing of the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star")
COLOURS: dict[str, Rgb] = {
    "red": (218, 30, 38),
    "green": (30, 150, 60),
    "blue": (35, 80, 215),
    "yellow": (250, 220, 30),
    "purple": (135, 40, 165),
    "orange": (250, 130, 15),
    "black": (18, 18, 18),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (245, 245, 245),
    "grey": (190, 190, 190),
    "pink": (245, 180, 200),
}
"""All lighter than every shape: a model as small as this learns dark shapes on light ground, not both ways."""
DIAMETERS = {"small": (0.11, 0.14), "large": (0.28, 0.36)}
"""Sides of the square around a shape, as fractions of the picture's shorter side; a wide gap between them."""
PICTURE_SIZES = ((512, 384), (512, 512), (384, 512), (640, 480), (800, 600), (1024, 768))
"""Width × height in pixels."""
COUNT_WEIGHTS = {1: 2, 2: 8, 3: 5}
"""How often so many shapes are tried; crowded scenes fail more often and so end up about as frequent."""

LATTICE = 9
"""Centres lie near the centres of LATTICE × LATTICE cells: the patches of the model. A vision transformer needs
millions of pictures to know a shape wherever it lies on its patches; we have minutes."""
LATTICE_JITTER = 0.15
"""How far from the centre of its cell a shape may lie, in cells."""
COLOUR_JITTER = 10
"""Each channel differs from its colour's value by at most this."""
EDGE_MARGIN = 0.01
"""Free space between a shape and the edge of the picture, relative."""
GAP = 0.025
"""Free space between the boxes of two shapes, relative, in at least one direction."""
ORDER_MARGIN = 0.06
"""What "left of" and "above" take in a question: centres differ by at least this."""
DIAGONAL_MARGIN = 0.03
"""By how much the vertical distance exceeds the horizontal one when one thing is above the other."""
TWIN_CHANCE = 0.3
"""How often a shape repeats the shape or the colour of the one before it."""
SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """One shape; centre and extent are relative, 0…1, of the picture's width and height."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    width: float
    height: float
    rgb: Rgb

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max, relative."""
        return (
            self.x - self.width / 2,
            self.y - self.height / 2,
            self.x + self.width / 2,
            self.y + self.height / 2,
        )


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    objects: tuple[Thing, ...]
    """In reading order."""
    background: str
    background_rgb: Rgb
    width_px: int
    height_px: int


def random_scene(rng: random.Random, count_weights: Mapping[int, int] = COUNT_WEIGHTS) -> Scene:
    """The next scene of a random stream, without any ambiguity."""
    while True:
        scene = _attempt(rng, count_weights)
        if scene is not None:
            return scene


def _attempt(rng: random.Random, count_weights: Mapping[int, int]) -> Scene | None:
    """One scene, or None when the shapes found no place or their order is unclear."""
    width_px, height_px = rng.choice(PICTURE_SIZES)
    background = rng.choice(list(BACKGROUNDS))
    count = rng.choices(list(count_weights), list(count_weights.values()))[0]
    things: list[Thing] = []
    while len(things) < count:
        thing = _random_thing(rng, things, background, (width_px, height_px))
        if thing is None:
            return None
        things.append(thing)
    ordered = reading_order(things)
    if ordered is None:
        return None
    return Scene(tuple(ordered), background, _jitter(rng, BACKGROUNDS[background]), width_px, height_px)


def _random_thing(rng: random.Random, others: list[Thing], background: str, size_px: tuple[int, int]) -> Thing | None:
    """One more shape, or None when ten places were all taken."""
    shape = rng.choice(SHAPES)
    colour = rng.choice([c for c in COLOURS if c != background])
    if others and rng.random() < TWIN_CHANCE:
        if rng.random() < 0.5:
            shape = others[-1].shape
        else:
            colour = others[-1].colour
    size = rng.choice(list(DIAMETERS))
    diameter_px = rng.uniform(*DIAMETERS[size]) * min(size_px)
    width, height = diameter_px / size_px[0], diameter_px / size_px[1]
    for _ in range(10):
        x, y = _lattice_point(rng), _lattice_point(rng)
        thing = Thing(shape, colour, size, x, y, width, height, _jitter(rng, COLOURS[colour]))
        inside = min(thing.box) >= EDGE_MARGIN and max(thing.box) <= 1 - EDGE_MARGIN
        if inside and not any(_touch(thing, other) for other in others):
            return thing
    return None


def _jitter(rng: random.Random, rgb: Rgb) -> Rgb:
    red, green, blue = (min(255, max(0, c + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for c in rgb)
    return (red, green, blue)


def _lattice_point(rng: random.Random) -> float:
    return (rng.randrange(LATTICE) + 0.5 + rng.uniform(-LATTICE_JITTER, LATTICE_JITTER)) / LATTICE


def _touch(a: Thing, b: Thing) -> bool:
    """Whether the boxes come nearer than GAP in both directions."""
    return abs(a.x - b.x) < (a.width + b.width) / 2 + GAP and abs(a.y - b.y) < (a.height + b.height) / 2 + GAP


def reading_order(things: list[Thing]) -> list[Thing] | None:
    """As one reads: row of the lattice by row, from left to right; None when two things stand slantwise.

    Two things are told by their relation, so one must plainly be above the other or stand in the same row.
    The patches come to the model in this order, and one that sees only what came before can count along.
    """
    ordered = sorted(things, key=lambda thing: (row_of(thing), thing.x))
    if len(ordered) == 2 and row_of(ordered[0]) != row_of(ordered[1]):
        across, down = abs(ordered[0].x - ordered[1].x), abs(ordered[0].y - ordered[1].y)
        if down < across + DIAGONAL_MARGIN:
            return None
    return ordered


def row_of(thing: Thing) -> int:
    """The lattice row that the centre lies in."""
    return int(thing.y * LATTICE)


def draw(scene: Scene, size_px: tuple[int, int] | None = None) -> Image.Image:
    """The scene as an RGB picture, of its own size or of `size_px` (width, height)."""
    width_px, height_px = size_px or (scene.width_px, scene.height_px)
    width, height = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    picture = Image.new("RGB", (width, height), scene.background_rgb)
    pencil = ImageDraw.Draw(picture)
    for thing in scene.objects:
        x_min, y_min, x_max, y_max = thing.box
        box = (x_min * width, y_min * height, x_max * width, y_max * height)
        if thing.shape == "circle":
            pencil.ellipse(box, fill=thing.rgb)
        else:
            pencil.polygon(_stretched(OUTLINES[thing.shape], box), fill=thing.rgb)
    return picture.reduce(SUPERSAMPLING)


def _stretched(
    outline: tuple[tuple[float, float], ...], box: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    """An outline of the unit square, stretched over a box."""
    x_min, y_min, x_max, y_max = box
    return [(x_min + x * (x_max - x_min), y_min + y * (y_max - y_min)) for x, y in outline]


def _star() -> tuple[tuple[float, float], ...]:
    """A five-pointed star that fills the unit square; its inner radius is 0.42 of the outer one."""
    angles = [math.pi * corner / 5 for corner in range(10)]
    radii = [0.42 if corner % 2 else 1.0 for corner in range(10)]
    points = [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(angles, radii, strict=True)]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    width, height = max(x for x, _ in points) - left, max(y for _, y in points) - top
    return tuple(((x - left) / width, (y - top) / height) for x, y in points)


OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 1), (0, 1)),
    "star": _star(),
}
"""Corners in the unit square, x right and y down."""


def sample_pictures(directory: Path, count: int, seed: int) -> list[tuple[Path, str]]:
    """Draw `count` scenes into files, PNG and JPEG in turn; their paths and right short captions."""
    from edge_daemon.demo.language import short_caption

    rng = random.Random(f"samples {seed}")
    directory.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(1, count + 1):
        scene = random_scene(rng)
        path = directory / f"scene-{number:02}.{'png' if number % 2 else 'jpg'}"
        draw(scene).save(path, quality=90)
        samples.append((path, short_caption(scene)))
    return samples
