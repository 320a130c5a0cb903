"""Training samples: scenes as pixels, and all that is asked about one of them packed behind its image prefix.

A picture is encoded once; several *tails* (a caption, a question and its answer, a detection) follow in one
row, each of which sees the prefix and itself. This file makes the arrays, `train` makes the loss. It knows
neither modules nor gradients.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edge_daemon.demo.language import Target, normal_caption, short_caption
from edge_daemon.demo.questions import FOREIGN, random_question, random_target, reworded
from edge_daemon.demo.scenes import BACKGROUNDS, COLOURS, DIAMETERS, SHAPES, Scene, Thing, draw, random_scene
from edge_daemon.demo.vocabulary import BOX, build_tokenizer, pieces
from edge_daemon.moondream.config import ModelConfig

ROW = 112
"""Positions for the tails of one picture."""
TRAINING_COUNTS = {1: 2, 2: 8, 3: 16}
"""Scenes of three shapes are nearly all that the model gets wrong, so it trains on more of them than there are."""
IGNORED = -100
"""Target of a position without a loss (the default of `cross_entropy`)."""


@dataclass
class Row:
    """One packed row while it grows; one entry a position."""

    token: list[int] = field(default_factory=list)
    coord: list[float] = field(default_factory=list)
    """Input coordinate, −1 where the input is something else."""
    size: list[tuple[float, float]] = field(default_factory=list)
    """Input size, (−1, −1) where the input is something else."""
    position: list[int] = field(default_factory=list)
    """Behind the prefix; starts again with each tail."""
    tail: list[int] = field(default_factory=list)
    """Which tail; 0 is padding."""
    next_token: list[int] = field(default_factory=list)
    next_coord: list[int] = field(default_factory=list)
    next_size: list[tuple[int, int]] = field(default_factory=list)

    def add(self, tail: list[Step]) -> None:
        """One more tail."""
        number = max(self.tail, default=0) + 1
        for position, step in enumerate(tail):
            self._append(step, position, number)

    def pad(self, length: int) -> None:
        """Fill up with positions that nothing sees and that have no loss."""
        for _ in range(length - len(self.token)):
            self._append(Step(), 0, 0)

    def _append(self, step: Step, position: int, number: int) -> None:
        self.token.append(step.token)
        self.coord.append(step.coord)
        self.size.append(step.size)
        self.position.append(position)
        self.tail.append(number)
        self.next_token.append(step.next_token)
        self.next_coord.append(step.next_coord)
        self.next_size.append(step.next_size)


@dataclass
class Step:
    """What goes in at one position, and what shall come out; the defaults are "nothing"."""

    token: int = 0
    coord: float = -1.0
    size: tuple[float, float] = (-1.0, -1.0)
    next_token: int = IGNORED
    next_coord: int = IGNORED
    next_size: tuple[int, int] = (IGNORED, IGNORED)


@dataclass(frozen=True)
class Batch:
    """B pictures; tensors of B rows."""

    crops: Tensor
    """(B, S, S, 3) bytes."""
    rows: dict[str, Tensor]
    """The fields of Row."""
    scenes: list[Scene]


class Packer:
    """Turns scenes into rows, by one model's vocabulary and bins."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the tokenizer; nothing is read."""
        assert config.region is not None, "demo-shapes has a region head"
        self.config = config
        self.region = config.region
        self.tokenizer: Tokenizer = build_tokenizer()
        self.ids = self.tokenizer.get_vocab()

    def row(self, scene: Scene, rng: random.Random) -> Row:
        """A row of ROW positions: captions, boxes or points, then questions while there is room."""
        row = Row()
        row.add(self.caption(scene, "short"))
        if rng.random() < 0.3:
            row.add(self.caption(scene, "normal"))
        row.add(self.finding(scene, rng))
        misses = 0
        while misses < 3:
            tail = self.question(scene, rng) if rng.random() < 0.85 else self.finding(scene, rng)
            if len(row.token) + len(tail) <= ROW:
                row.add(tail)
            else:
                misses += 1
        row.pad(ROW)
        return row

    def caption(self, scene: Scene, length: str) -> list[Step]:
        """Prompt and caption."""
        text = short_caption(scene) if length == "short" else normal_caption(scene)
        return self._spoken(self.config.templates.caption[length], text)

    def question(self, scene: Scene, rng: random.Random) -> list[Step]:
        """Prompt, a random question and its answer."""
        question = random_question(scene, rng)
        template = self.config.templates.query
        assert template is not None, "demo-shapes answers questions"
        return self._spoken(template["prefix"] + self._encode(question.text) + template["suffix"], question.answer)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _spoken(self, prompt: list[int], text: str) -> list[Step]:
        answer = [self.ids[piece] for piece in pieces(text)]
        steps = [Step(token=token) for token in prompt + answer]
        for step, token in zip(steps[len(prompt) - 1 :], [*answer, self.config.tokens.eos], strict=True):
            step.next_token = token
        return steps

    def finding(self, scene: Scene, rng: random.Random) -> list[Step]:
        """Prompt and boxes (or points) of a random target, in reading order; none for an unknown word."""
        target = random_target(scene, rng, "shape", "colour", "size")
        found, name = target.found(scene), reworded(rng.choice([target.name, target.plural]), rng)
        if rng.random() < 0.1:
            target, found = Target(), list(scene.objects)
            name = rng.choice(["shape", "shapes", "object", "objects", "thing", "things"])
        elif rng.random() < 0.06:
            found, name = [], f"{rng.choice(['', target.colour or ''])} {FOREIGN}"
        task = "point" if rng.random() < 0.2 else "detect"
        template = getattr(self.config.templates, task)
        steps = [Step(token=t) for t in template["prefix"] + self._encode(f" {name}") + template["suffix"]]
        for thing in found:
            steps += self._located(thing, steps[-1], boxed=task == "detect")
        steps[-1].next_token = self.config.tokens.eos
        return steps

    def _located(self, thing: Thing, before: Step, boxed: bool) -> list[Step]:
        """The steps that read one place and its size, behind the step `before`."""
        bins = self.region.coord_bins
        x, y = (min(bins - 1, round(position * bins)) for position in (thing.x, thing.y))
        before.next_token, before.next_coord = self.ids[BOX], x
        steps = [Step(coord=x / bins, next_coord=y), Step(coord=y / bins)]
        if boxed:
            bins = self.region.size_bins
            w, h = (min(bins - 1, round(extent * bins)) for extent in (thing.width, thing.height))
            steps[-1].next_size = (w, h)
            steps.append(Step(size=(w / bins, h / bins)))
        return steps


def batch(packer: Packer, rng: random.Random, pictures: int) -> Batch:
    """The next batch of a random stream.

    Scenes are drawn as small as the config's crop: that is what squeezing a large picture to one crop and
    averaging its cells comes to.
    """
    side = packer.config.vision.crop_px
    scenes = [random_scene(rng, TRAINING_COUNTS) for _ in range(pictures)]
    crops = torch.from_numpy(np.stack([np.asarray(draw(scene, (side, side))) for scene in scenes]))
    rows = [packer.row(scene, rng) for scene in scenes]
    columns = {name: torch.tensor([getattr(row, name) for row in rows]) for name in vars(rows[0])}
    return Batch(crops, columns, scenes)


def dense_labels(scenes: list[Scene], grid: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What each patch should know, for the throw-away head: (B, P, 8) classes and (B, P, 4) boxes.

    Classes: shape, colour and size of the thing on the patch, and the column and the row of its centre (0 if there
    is none); the background, whether the thing's centre lies in the patch, and whether there is a thing.
    Boxes: centre relative to the patch's centre, and extent.
    """
    classes = np.zeros((len(scenes), grid, grid, 8), np.int64)
    boxes = np.zeros((len(scenes), grid, grid, 4), np.float32)
    centres = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    for index, scene in enumerate(scenes):
        classes[index, ..., 5] = list(BACKGROUNDS).index(scene.background)
        for thing in scene.objects:
            x_min, y_min, x_max, y_max = thing.box
            column, row = int(thing.x * grid), int(thing.y * grid)
            on = ((centres > y_min) & (centres < y_max))[:, None] & ((centres > x_min) & (centres < x_max))
            on[row, column] = True
            names = (SHAPES.index(thing.shape), list(COLOURS).index(thing.colour), list(DIAMETERS).index(thing.size))
            classes[index, on, :5] = (*names, column, row)
            classes[index, row, column, 6] = 1
            classes[index, on, 7] = 1
            rows, columns = np.nonzero(on)
            boxes[index, on, :2] = np.stack([thing.x - centres[columns], thing.y - centres[rows]], axis=-1)
            boxes[index, on, 2:] = (thing.width, thing.height)
    return classes.reshape(len(scenes), -1, 8), boxes.reshape(len(scenes), -1, 4)
