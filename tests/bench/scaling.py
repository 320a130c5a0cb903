"""Time against crops, KV length, length of the prompt, and threads, beside what the arithmetic says.

    python -m tests.bench.scaling [--directory DIR] [--precision int8]

Each table's first line is its measure: the last column is how much more a line takes than that measure times what the
arithmetic says. Above 1 something grows faster than it must. For threads the arithmetic says 1/N.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edge_daemon.bench import arithmetic, machine
from edge_daemon.bench.arithmetic import WEIGHT_BYTES
from edge_daemon.bench.measure import open_model
from edge_daemon.bench.random_model import SHAPES, write_random
from edge_daemon.bench.stages import speak
from edge_daemon.moondream import generate
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.model import Moondream
from edge_daemon.scratch import scratch

CROPS = (1, 2, 3, 5)
POSITIONS = (740, 1000, 1500, 2000)
PROMPTS = (5, 20, 80, 320)
TOKENS = 8
"""For the median of a token at one length."""


@dataclass(frozen=True)
class Line:
    """One measured case."""

    case: int
    times_s: list[float]
    work: float
    """By the arithmetic, in any unit."""

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)


class Scaling:
    """The measurements of one model."""

    def __init__(self, model: Moondream, repeats: int) -> None:
        self.model, self.config, self.repeats = model, model.config, repeats
        self.weight_bytes = WEIGHT_BYTES[model.parts.precision]
        self.position_bytes = model.cache.size_bytes // model.cache.positions

    def crops(self) -> list[Line]:
        """The vision encoder on several crops at once: operations."""
        return self._lines(
            {count: arithmetic.vision(self.config, count).flops for count in CROPS},
            lambda count: self._timed(partial(self._look, count)),
        )

    def positions(self) -> list[Line]:
        """One token behind a sequence: bytes, as it waits for the memory."""
        fitting = [past for past in POSITIONS if past + TOKENS <= self.model.cache.positions]
        works = {past: arithmetic.token(self.config, past + TOKENS // 2) for past in fitting}
        return self._lines(
            {past: work.bytes(self.weight_bytes, self.position_bytes) for past, work in works.items()}, self._tokens
        )

    def prompts(self) -> list[Line]:
        """A prompt behind the picture: operations. A short one waits for the memory, so the others take less."""
        past = self.config.prefix_positions
        fitting = [count for count in PROMPTS if past + count <= self.model.cache.positions]
        return self._lines(
            {count: arithmetic.decoder(self.config, past, count).flops for count in fitting},
            lambda count: self._timed(partial(self._ask, count)),
        )

    def threads(self) -> list[Line]:
        """The vision encoder on one crop."""
        return self._by_threads(lambda: self._timed(partial(self._look, 1)))

    def token_threads(self) -> list[Line]:
        """One token behind a picture."""
        return self._by_threads(lambda: self._tokens(self.config.prefix_positions))

    def _by_threads(self, measure: Callable[[], list[float]]) -> list[Line]:
        before = torch.get_num_threads()

        def with_threads(threads: int) -> list[float]:
            torch.set_num_threads(threads)
            return measure()

        try:
            return self._lines({threads: 1 / threads for threads in range(1, machine.cores() + 1)}, with_threads)
        finally:
            torch.set_num_threads(before)

    def _lines(self, works: Mapping[int, float], measure: Callable[[int], list[float]]) -> list[Line]:
        """All cases, again and again, so that a busy moment meets all of them; the first time does not count."""
        times_s: dict[int, list[float]] = {case: [] for case in works}
        for repeat in range(self.repeats + 1):
            for case in works:
                taken_s = measure(case)
                times_s[case] += taken_s if repeat else []
        return [Line(case, times_s[case], work) for case, work in works.items()]

    def _look(self, crops: int) -> object:
        size_px = self.config.vision.crop_px
        return self.model.vision.encode(torch.rand(crops, 3, size_px, size_px) * 2 - 1)

    def _ask(self, tokens: int) -> object:
        self.model.cache.rewind(self.config.prefix_positions)
        return generate.prefill(self.model.text, self.model.cache, [self.config.tokens.bos] * tokens)

    def _tokens(self, past: int) -> list[float]:
        self._fill(past)
        return [token.seconds for token in speak(self.model, self.config.tokens.bos, TOKENS)]

    def _fill(self, positions: int) -> None:
        """The cache as if so many positions had been written: random numbers, as zeros could be quicker."""
        text, cache = self.config.text, self.model.cache
        cache.rewind(0)
        cache.append(torch.rand(text.layers, 2, text.heads, positions, text.head_dim) - 0.5)

    @torch.inference_mode()
    def _timed(self, call: Callable[[], object]) -> list[float]:
        """Seconds of one call, as a list. The cache holds a picture."""
        self._fill(self.config.prefix_positions)
        start_s = time.perf_counter()
        call()
        return [time.perf_counter() - start_s]


def rows(lines: list[Line]) -> list[dict[str, Any]]:
    """As they go into the document: times and work as multiples of the first line's, and their ratio."""
    first = lines[0]
    found = []
    for one in lines:
        grown, wanted = one.median_s / first.median_s, one.work / first.work
        found.append(
            {
                "case": one.case,
                "median_s": round(one.median_s, 5),
                "least_s": round(min(one.times_s), 5),
                "most_s": round(max(one.times_s), 5),
                "time": round(grown, 3),
                "arithmetic": round(wanted, 3),
                "ratio": round(grown / wanted, 3),
            }
        )
    return found


def table(title: str, said: list[dict[str, Any]]) -> str:
    """One measurement for people."""
    head = f"{title:32}{'seconds':>10}{'from':>10}{'to':>10}{'time':>9}{'arithmetic':>12}{'ratio':>8}"
    lines = [
        f"{row['case']:>32}{row['median_s']:>10.4f}{row['least_s']:>10.4f}{row['most_s']:>10.4f}"
        f"{row['time']:>9.3f}{row['arithmetic']:>12.3f}{row['ratio']:>8.2f}"
        for row in said
    ]
    return "\n".join([head, *lines])


@contextmanager
def material(directory: Path | None) -> Iterator[Path]:
    """The model directory, or random weights in the 0.5B shape."""
    if directory is not None:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="edge-daemon-scaling-", dir=scratch()) as name:
        write_random(Path(name), SHAPES["0.5b"], seed=5)
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, metavar="DIR", help="default: random weights in the 0.5B shape")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    arguments = parser.parse_args()
    with material(arguments.directory) as directory:
        config = load_config(directory)
        model = open_model(directory, config, arguments.precision, config.text.max_context, say)
        scaling = Scaling(model, max(1, arguments.repeats))
        kinds: dict[str, Callable[[], list[Line]]] = {
            "crops at once": scaling.crops,
            "a token behind so many": scaling.positions,
            "prompt tokens": scaling.prompts,
            "threads, one crop": scaling.threads,
            "threads, one token": scaling.token_threads,
        }
        said = {"schema": 1, **machine.describe(), "model": config.name, "precision": model.parts.precision}
        for title, measure in kinds.items():
            if not (lines := measure()):
                print(f"{title}: a context of {config.text.max_context} positions is too short for this", end="\n\n")
                continue
            said[title] = rows(lines)
            print(table(title, said[title]), end="\n\n", flush=True)
    print(json.dumps(said, separators=(",", ":")))


def say(text: str) -> None:
    print(f"{text} …", file=sys.stderr)


if __name__ == "__main__":
    main()
