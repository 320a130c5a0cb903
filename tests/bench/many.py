"""What questions cost beside a caption: together, as the product asks them, and one after the other.

    python -m tests.bench.many [--directory DIR] [--precision int8] [--questions 5] [--tokens 20]

Each round looks at one picture three times: for the caption alone, for the caption and all questions together, and for
the same one after the other. The ratios are of times of the same round; every answer has exactly so many tokens, end
tokens and circles are ignored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from edge_daemon.bench import machine
from edge_daemon.bench.measure import open_model
from edge_daemon.bench.stages import camera_picture
from edge_daemon.moondream import generate
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Answer, Moondream
from tests.bench.scaling import material, say

QUESTIONS = (
    "Is the gate open?",
    "How many cars are there?",
    "Is there a person on the road?",
    "What is the weather like?",
    "What colour is the door?",
    "Is the light on?",
    "Which animal is to be seen?",
)
SIDE_PX = 512


class Rounds:
    """The measurements of one model."""

    def __init__(self, model: Moondream, questions: int, tokens: int) -> None:
        endless = replace(model.config.tokens, eos=-1, answer=None)
        model.config = replace(model.config, tokens=endless)
        generate.repetition = lambda tokens: 0
        self.model, self.sampling = model, Sampling(tokens)
        self.asked = [("caption", next(iter(model.config.templates.caption)))]
        self.asked += [("query", question) for question in QUESTIONS[:questions]]
        self.picture = Image.open(BytesIO(camera_picture())).convert("RGB")
        self.picture.thumbnail((SIDE_PX, SIDE_PX))

    def run(self) -> dict[str, float]:
        """Seconds of one round."""
        _, alone_s = self._timed(lambda: self._ask(self.asked[:1]))
        together, together_s = self._timed(lambda: self._ask(self.asked))
        in_turn, in_turn_s = self._timed(lambda: [text for one in self.asked for text in self._ask([one])])
        equal = sum(one == other for one, other in zip(together, in_turn, strict=True)) / len(together)
        return {"alone_s": alone_s, "together_s": together_s, "in_turn_s": in_turn_s, "equal": equal}

    def _ask(self, asked: list[tuple[str, str]]) -> list[str]:
        answers = self.model.ask(asked, self.sampling)
        assert all(isinstance(a, Answer) and a.tokens == self.sampling.max_tokens for a in answers), answers
        return [str(answer.text) for answer in answers if isinstance(answer, Answer)]

    def _timed(self, work: Callable[[], list[str]]) -> tuple[list[str], float]:
        start_s = time.perf_counter()
        self.model.encode(self.picture)
        return work(), time.perf_counter() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, metavar="DIR", help="default: random weights in the 0.5B shape")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--questions", type=int, choices=range(1, len(QUESTIONS) + 1), default=5)
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="of each answer; default: 20")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    arguments = parser.parse_args()
    with material(arguments.directory) as directory:
        config = load_config(directory)
        model = open_model(directory, config, arguments.precision, config.text.max_context, say)
        measure = Rounds(model, arguments.questions, arguments.tokens)
        measure.run()  # the first time does not count
        print(f"a caption and {arguments.questions} questions, {arguments.tokens} tokens each, {model.parts.precision}")
        rounds = []
        for _ in range(max(1, arguments.rounds)):
            rounds.append(measure.run())
            times_s = [(name, s) for name, s in rounds[-1].items() if name.endswith("_s")]
            print("".join(f"{name.removesuffix('_s'):>12} {s:7.3f} s" for name, s in times_s), flush=True)
    ratios = {name: [r[f"{name}_s"] / r["alone_s"] for r in rounds] for name in ("together", "in_turn")}
    for name, found in ratios.items():
        print(
            f"{name:>12}: {statistics.median(found):.2f} times a caption alone ({min(found):.2f} to {max(found):.2f})"
        )
    medians = {f"{name}_ratio": round(statistics.median(found), 3) for name, found in ratios.items()}
    said = {"schema": 1, **machine.describe(), "model": config.name, "precision": model.parts.precision, **medians}
    said |= {"questions": arguments.questions, "tokens": arguments.tokens, "rounds": rounds}
    print(json.dumps(said, separators=(",", ":")))


if __name__ == "__main__":
    main()
