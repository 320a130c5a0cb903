"""How right `demo-shapes` is: `python -m edge_daemon.demo.evaluate`.

Held-out scenes are drawn and shrunk to 512 px as the service does it, go through the same `Moondream` as
everything else, and are compared with what `language` and `questions` say. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

from PIL import Image

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.language import Target, normal_caption, short_caption
from edge_daemon.demo.questions import random_question, random_target
from edge_daemon.demo.scenes import Thing, draw, random_scene
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Box, Moondream
from edge_daemon.picture_limits import MAX_SIDE_PX

HELD_OUT = "held out"
"""The random stream of the scenes that no training run draws from."""
JPEG_QUALITY = 75
SAMPLING = Sampling(max_tokens=64)


@dataclass(frozen=True)
class Figures:
    """Shares of what is right, 0…1."""

    scenes: int
    short_captions: float
    """Exactly right, word for word."""
    normal_captions: float
    answers: float
    """Exactly right; `questions_per_scene` random questions about each scene."""
    answers_by_kind: dict[str, float]
    boxes_mean_iou: float
    """Intersection over union; a missing or an unasked box counts as 0."""
    objects_counted_right: float
    """Detections that found as many as there are, none included."""
    jpeg_short_captions: float
    """Exactly right when the shrunk picture also went through JPEG at quality 75."""
    questions_per_scene: int


def evaluate(directory: Path, scenes: int, questions: int = 4) -> Figures:
    """Figures of the model in `directory` on held-out scenes. Raises ModelError when it cannot be loaded."""
    model = Moondream(directory)
    tally = Tally()
    rng = random.Random(HELD_OUT)
    for _ in range(scenes):
        scene = random_scene(rng)
        picture = shrunk(draw(scene))
        model.encode(jpeg(picture))
        tally.add("jpeg", model.caption("short", SAMPLING).text == short_caption(scene))
        model.encode(picture)
        tally.add("short", model.caption("short", SAMPLING).text == short_caption(scene))
        tally.add("normal", model.caption("normal", SAMPLING).text == normal_caption(scene))
        for _ in range(questions):
            question = random_question(scene, rng)
            right = model.query(question.text, SAMPLING).text == question.answer
            tally.add("answer", right)
            tally.add(f"answer {question.kind}", right)
        for target in (Target(), random_target(scene, rng, "shape", "colour", "size")):
            _score_boxes(tally, model.detect(target.name), target.found(scene))
    return Figures(
        scenes=scenes,
        short_captions=tally.share("short"),
        normal_captions=tally.share("normal"),
        answers=tally.share("answer"),
        answers_by_kind={
            kind.removeprefix("answer "): tally.share(kind)
            for kind in sorted(tally.count)
            if kind.startswith("answer ")
        },
        boxes_mean_iou=tally.share("iou"),
        objects_counted_right=tally.share("found"),
        jpeg_short_captions=tally.share("jpeg"),
        questions_per_scene=questions,
    )


class Tally:
    """Sums of scores by name."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.score: dict[str, float] = {}

    def add(self, name: str, score: float) -> None:
        """One more score, 0…1."""
        self.count[name] += 1
        self.score[name] = self.score.get(name, 0.0) + score

    def share(self, name: str) -> float:
        """The mean score; 0 when nothing was scored."""
        return round(self.score.get(name, 0.0) / max(1, self.count[name]), 4)


def shrunk(picture: Image.Image) -> Image.Image:
    """The picture as the service hands it to the model: at most 512 px on the longer side."""
    small = picture.copy()
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return small


def jpeg(picture: Image.Image) -> Image.Image:
    """The picture after JPEG at quality 75."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return Image.open(file).convert("RGB")


def _score_boxes(tally: Tally, found: list[Box], wanted: list[Thing]) -> None:
    tally.add("found", len(found) == len(wanted))
    for score in matched_iou([(b.x_min, b.y_min, b.x_max, b.y_max) for b in found], [thing.box for thing in wanted]):
        tally.add("iou", score)


Corners = tuple[float, float, float, float]


def matched_iou(found: list[Corners], wanted: list[Corners]) -> list[float]:
    """IoU of the best pairing of two short lists of boxes, one value a pair; a box without partner has 0."""
    few, many = sorted((found, wanted), key=len)
    pairings = ([iou(a, b) for a, b in zip(few, chosen, strict=True)] for chosen in permutations(many, len(few)))
    return max(pairings, key=sum) + [0.0] * (len(many) - len(few))


def iou(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common or 1.0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edge_daemon.demo.evaluate", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=MODEL_DIR, metavar="DIR", help="model directory (the shipped one)"
    )
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = asdict(evaluate(options.model, options.scenes))
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24}{value}")


if __name__ == "__main__":
    main()
