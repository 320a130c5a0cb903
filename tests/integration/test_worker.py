"""The worker's own work, in this process: what it decides within a budget, and what it gives back."""

from __future__ import annotations

import io
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_daemon import memory, worker
from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import BudgetError
from edge_daemon.messages import ImageWish, Progress, Request, Results, Task
from edge_daemon.moondream import device
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import Footprint, footprint
from edge_daemon.needs import needs_of
from edge_daemon.pipe import Pipe
from edge_daemon.units import MIB
from edge_daemon.worker import Serving

TASKS = [Task("caption", "caption", "short"), Task("count", "query", "How many shapes are there?")]
Arguments = Callable[..., None]


class Ear(Pipe):
    """The daemon's end, without a daemon: keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def write(self, item: object) -> None:
        self.heard.append(item)


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> Arguments:
    """`arguments(budget_bytes, *options)`: what the daemon would start it with."""

    def given(budget_bytes: int, *options: str) -> None:
        argv = ["worker", "--model", str(MODEL_DIR), "--budget-bytes", str(budget_bytes), "--budget-reason", "a test"]
        monkeypatch.setattr(sys, "argv", [*argv, *options])

    return given


def request(directory: Path) -> tuple[Request, str]:
    """A drawn picture of 512 pixels, and its caption."""
    from PIL import Image

    ((path, truth),) = sample_pictures(directory, 1, 5)
    picture = Image.open(path).convert("RGB").resize((512, 384))
    return Request(512, 384, TASKS, 32, 0.0, 1.0, picture.tobytes()), truth


def test_a_budget_that_holds_float32_is_used_for_it_and_else_for_int8(arguments: Arguments) -> None:
    arguments(8 << 30)
    _, roomy = worker.load(worker.parse(), time.monotonic())
    numbers = re.search(r"float32 needs (\d+) MiB, the budget is 8192 MiB \(a test\): float32$", roomy.reason)
    assert roomy.precision == "float32"
    assert numbers
    short_bytes = worker.resident_bytes() + 22 * MIB  # float32 takes 24 MiB beside the program, int8 19
    arguments(short_bytes)
    serving, short = worker.load(worker.parse(), time.monotonic())
    assert short.precision == serving.model.parts.precision == "int8"
    assert re.search(r"\(a test\): int8, which needs \d+ MiB$", short.reason)


@pytest.mark.parametrize("kv_precision", ["auto", "float32", "float16"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_cache_takes_what_the_budget_was_told(arguments: Arguments, precision: str, kv_precision: str) -> None:
    arguments(8 << 30, "--precision", precision, "--kv-precision", kv_precision, "--kv-positions", "200")
    serving, ready = worker.load(worker.parse(), time.monotonic())
    taken = footprint(MODEL_DIR, serving.model.config, precision, kv_precision)
    assert ready.kv_bytes == serving.model.cache.size_bytes == 200 * taken.bytes_per_position
    short = kv_precision == "float16" or (kv_precision == "auto" and precision == "int8")
    assert ready.kv_bytes == (200 * 4096 * 3 // 4 if short else 200 * 4096), "half, and a layer of two as it is read"


def test_too_little_for_anything_is_refused(arguments: Arguments) -> None:
    arguments(64 * MIB)
    with pytest.raises(BudgetError, match="MiB of memory are missing"):
        worker.load(worker.parse(), time.monotonic())


def test_a_released_vision_encoder_comes_back_for_the_next_picture(arguments: Arguments, tmp_path: Path) -> None:
    arguments(8 << 30)
    kept, _ = worker.load(worker.parse(), time.monotonic())
    assert (kept.releases_vision, kept.tight) == (False, False)
    released = Serving(kept.model, releases_vision=True, tight=True)
    asked, truth = request(tmp_path)
    said = []
    for serving in (kept, released, released, kept):
        ear = Ear()
        results = worker.answer(serving, asked, ear)
        assert isinstance(results, Results)
        assert ("vision" in vars(serving.model)) != serving.releases_vision
        assert ear.heard[:2] == [Progress("encode"), Progress("caption")]
        assert results.encode_ms > 0
        assert results.rss_bytes > 0
        said.append([task.text for task in results.tasks])
    assert said[0][0] == truth
    assert all(words == said[0] for words in said)


def test_an_image_comes_back_with_what_was_found_framed(arguments: Arguments, tmp_path: Path) -> None:
    from PIL import Image, ImageChops, ImageStat

    arguments(8 << 30)
    serving, _ = worker.load(worker.parse(), time.monotonic())
    asked, _ = request(tmp_path)
    tasks = [*TASKS, Task("shapes", "detect", "shape")]
    sent = Image.frombytes("RGB", (512, 384), asked.payload)
    images: dict[bool, Image.Image] = {}
    for boxes in (False, True):
        ear = Ear()
        results = worker.answer(serving, replace(asked, tasks=tasks, image=ImageWish(90, 200 << 10, boxes)), ear)
        assert isinstance(results, Results)
        assert [task.id for task in results.tasks] == ["caption", "count", "shapes"]
        assert (results.image_problem, len(results.payload) <= 200 << 10) == ("", True)
        assert ear.heard.count(Progress("object")) == len(results.tasks[2].objects) > 0
        images[boxes] = Image.open(io.BytesIO(results.payload))
        box = results.tasks[2].objects[0]
    assert (images[False].format, images[False].size) == ("JPEG", (512, 384))
    assert ImageStat.Stat(ImageChops.difference(sent, images[False])).mean < [3.0] * 3, "the very picture"
    corner = (round(box["x_min"] * 511), round(box["y_max"] * 383))
    assert ImageChops.difference(images[False], images[True]).getpixel(corner) != (0, 0, 0)


def test_a_search_that_the_cache_cuts_short_says_so(arguments: Arguments, tmp_path: Path) -> None:
    arguments(8 << 30)
    serving, _ = worker.load(worker.parse(), time.monotonic())
    asked, _ = request(tmp_path)
    whole = worker.answer(serving, replace(asked, tasks=[Task("shapes", "detect", "shape")]), Ear())
    assert isinstance(whole, Results)
    serving.model.cache.cap = serving.model.config.prefix_positions + 10
    cut = worker.answer(serving, replace(asked, tasks=[Task("shapes", "detect", "shape")]), Ear())
    assert isinstance(cut, Results)
    assert [whole.tasks[0].finish_reason, cut.tasks[0].finish_reason] == ["eos", "memory"]
    assert cut.tasks[0].objects == whole.tasks[0].objects[: len(cut.tasks[0].objects)] != whole.tasks[0].objects


def test_an_image_that_is_too_large_loses_quality_and_then_is_left_out(arguments: Arguments, tmp_path: Path) -> None:
    arguments(8 << 30)
    serving, _ = worker.load(worker.parse(), time.monotonic())
    asked, _ = request(tmp_path)
    asked = replace(asked, payload=random.Random(5).randbytes(len(asked.payload)))  # nothing is harder to compress
    sizes, problem = [], ""
    for max_kib in (1000, 150, 20):
        results = worker.answer(serving, replace(asked, image=ImageWish(90, max_kib << 10, False)), Ear())
        assert isinstance(results, Results)
        assert len(results.payload) <= max_kib << 10
        assert results.tasks[0].text
        sizes.append(len(results.payload))
        problem = results.image_problem
    assert sizes[0] > 150 << 10
    assert sizes[1] > 100 << 10, "no poorer than it has to be"
    assert sizes[2] == 0
    assert re.search(r"512×384 takes \d+ KiB at quality 20; image.max_kib allows 20: it", problem)


def test_where_only_that_fits_the_vision_encoder_is_released(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a decoder whose work space is said to be the largest, as in a model with a long context."""

    def hungry(taken: Footprint, config: ModelConfig, runtime_bytes: int) -> memory.Needs:
        return replace(needs_of(taken, config, runtime_bytes), text_activation_bytes=200 * MIB)

    arguments(8 << 30, "--precision", "float32")
    config = load_config(MODEL_DIR)
    _, needs = worker.size(worker.parse(), config, device.choose("cpu", "float32", device.this_machine()))
    monkeypatch.setattr("edge_daemon.worker.needs_of", hungry)
    least_bytes = replace(needs, text_activation_bytes=200 * MIB, releases_vision=True).at(needs.smallest_positions)
    arguments(least_bytes + 3 * MIB, "--precision", "float32")
    serving, ready = worker.load(worker.parse(), time.monotonic())
    assert serving.releases_vision is ready.release_vision is True
    assert serving.tight
    assert "the vision encoder (6 MiB) is unloaded after every picture" in ready.reason
