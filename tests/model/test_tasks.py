"""Caption, query, detect, point: prompts, endings and what a checkpoint cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_daemon.errors import CaptionError
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import MAX_OBJECTS, Box, Moondream, Point, clipped, each
from edge_daemon.moondream.region import coord_of, size_of
from tests.model.checkpoints import text_of, tiny_config, write_model
from tests.model.naive import Naive

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def image(tiny: TinyFactory, noise: PictureFactory) -> tuple[Naive, object]:
    naive = Naive(tiny())
    return naive, naive.image_embeddings(noise(30, 30), (1, 1))


def encoded(directory: Path, noise: PictureFactory) -> Moondream:
    model = Moondream(directory)
    model.encode(noise(30, 30))
    return model


# -- prompts


def test_each_task_has_its_own_prompt(tiny: TinyFactory, noise: PictureFactory) -> None:
    """Each is asked in its own words: the answers are the naive network's to exactly these tokens."""
    model, naive = encoded(tiny(), noise), Naive(tiny())
    picture = naive.image_embeddings(noise(30, 30), (1, 1))
    asked: dict[str, tuple[list[int], Callable[[], str]]] = {
        "short": ([9, 10, 11], lambda: model.caption("short", Sampling(4)).text),
        "normal": ([9, 12, 13, 43], lambda: model.caption("normal", Sampling(4)).text),
        "query": (
            [14, 15, *model.tokenizer.encode("is the star red"), 16, 27],
            lambda: model.query("is the star red", Sampling(4)).text,
        ),
    }
    answers = {}
    for task, (prompt, ask) in asked.items():
        tokens, _ = naive.greedy(picture, prompt, 4)
        answers[task] = ask()
        assert answers[task] == model.tokenizer.decode(tokens).strip(), task
    assert len(set(answers.values())) == 3


def test_an_object_is_named_with_the_space_before_it(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = encoded(tiny(), noise)
    assert model.tokenizer.encode(" star") != model.tokenizer.encode("star")
    naive = Naive(tiny())
    prompt = [17, *model.tokenizer.encode(" star"), 18]
    x, y, w, h = naive.regions(naive.image_embeddings(noise(30, 30), (1, 1)), prompt, 1, sized=True)[0]
    found = model.detect("star")[0]
    wanted = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    assert (found.x_min, found.y_min, found.x_max, found.y_max) == pytest.approx(wanted)


def test_tokens_and_times_are_reported(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    assert model.encode(noise(30, 30)) > 0
    seen: list[int] = []
    answer = model.caption("short", Sampling(5), seen.append)
    assert (answer.tokens, answer.finish_reason) == (5, "length")
    assert answer.text == model.tokenizer.decode(seen).strip()
    assert answer.prefill_s > 0
    assert answer.generate_s > 0


# -- endings


@pytest.mark.parametrize("kind", ["eos", "answer"])
def test_both_end_tokens_end_an_answer(tiny: TinyFactory, noise: PictureFactory, kind: str) -> None:
    """The third token of an answer is declared an end token; the first two are then the answer."""
    model = encoded(tiny(), noise)
    seen: list[int] = []
    model.caption("short", Sampling(6), seen.append)
    assert seen[2] not in seen[:2]
    model.config = replace(model.config, tokens=replace(model.config.tokens, **{kind: seen[2]}))
    answer = model.caption("short", Sampling(6))
    assert (answer.tokens, answer.finish_reason) == (2, "eos")
    assert answer.text == model.tokenizer.decode(seen[:2]).strip()


def test_an_answer_may_be_empty(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = encoded(tiny(), noise)
    text_of(model).lm_head.bias[model.config.tokens.eos] += 1000
    answer = model.caption("short", Sampling(6))
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", 0, "eos")
    assert model.detect("star") == []
    assert model.point("star") == []
    assert each(model.boxes("star"), lambda box: None) == "eos"


def test_half_a_character_is_no_crash(tiny: TinyFactory) -> None:
    words = Moondream(tiny()).tokenizer
    assert words.encode("a\udcffb") == words.encode("a?b")


def test_eos_ends_a_search(tiny: TinyFactory, noise: PictureFactory) -> None:
    """The token that the decoder would say before the third object is declared EOS."""
    model, naive = encoded(tiny(), noise), Naive(tiny())
    everything = model.detect("star")
    assert len(everything) > 3
    said: list[int] = []
    decoder = text_of(model)
    logits = decoder.logits

    def listening(hidden: torch.Tensor) -> torch.Tensor:
        row = logits(hidden)
        said.append(int(row[0, -1].argmax()))
        return row

    decoder.logits = listening  # type: ignore[method-assign]
    model.detect("star")
    last = next(n for n, token in enumerate(said) if n and token not in said[:n])
    model.config = replace(model.config, tokens=replace(model.config.tokens, eos=said[last]))
    assert model.detect("star") == everything[:last]
    naive.config["tokens"]["eos"] = said[last]
    prompt = [17, *model.tokenizer.encode(" star"), 18]
    wanted = naive.regions(naive.image_embeddings(noise(30, 30), (1, 1)), prompt, last + 1, sized=True)
    assert len(wanted) == last


def test_a_search_ends_at_fifty_objects(tmp_path: Path, noise: PictureFactory) -> None:
    config = tiny_config()
    config = replace(config, text=replace(config.text, max_context=300))
    model = encoded(write_model(tmp_path, config, 1), noise)
    text_of(model).lm_head.bias[model.config.tokens.eos] -= 1000
    assert len(model.detect("star")) == len(model.point("star")) == MAX_OBJECTS == 50
    assert each(model.boxes("star"), lambda box: None) == each(model.points("star"), lambda point: None) == "length"


# -- what a checkpoint cannot do


def test_a_length_without_a_template_is_refused(tiny: TinyFactory, noise: PictureFactory) -> None:
    with pytest.raises(CaptionError, match=r"tiny has no 'long' caption; it has: short, normal"):
        encoded(tiny(), noise).caption("long", Sampling())


@pytest.mark.parametrize("task", ["query", "detect", "point"])
def test_a_task_without_a_template_is_refused(tmp_path: Path, noise: PictureFactory, task: str) -> None:
    templates = tiny_config().templates
    without = {
        "query": replace(templates, query=None),
        "detect": replace(templates, detect=None),
        "point": replace(templates, point=None),
    }
    model = encoded(write_model(tmp_path, replace(tiny_config(), templates=without[task])), noise)
    ask: dict[str, Callable[[], object]] = {
        "query": lambda: model.query("why", Sampling()),
        "detect": lambda: model.detect("star"),
        "point": lambda: model.point("star"),
    }
    with pytest.raises(CaptionError, match=f"tiny was not trained for '{task}'"):
        ask[task]()
    assert model.caption("short", Sampling(2)).tokens == 2


# -- coordinates and sizes


def test_bins_become_the_published_coordinates_and_sizes() -> None:
    bins = [0, 1, 512, 1023]
    logits = torch.nn.functional.one_hot(torch.tensor(bins), 1024).float()
    assert coord_of(logits).flatten().tolist() == [0, 1 / 1024, 0.5, 1023 / 1024]
    assert coord_of(logits[None, None, 1]).shape == (1, 1, 1)
    assert size_of(logits, "linear").tolist() == [0, 1 / 1024, 0.5, 1023 / 1024]
    wanted = [2.0 ** (b / 1023 * 10 - 10) for b in bins]
    assert size_of(logits, "log2").tolist() == pytest.approx(wanted, rel=1e-5)
    assert wanted[0] == 1 / 1024
    assert wanted[-1] == 1


numbers = st.floats(0, 1)


@given(numbers, numbers, numbers, numbers)
def test_a_clipped_box_is_the_part_in_the_picture(x: float, y: float, w: float, h: float) -> None:
    """Boxes are around a centre in the picture, so there always is such a part."""
    whole = Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    box = clipped(whole)
    assert 0 <= box.x_min <= x <= box.x_max <= 1
    assert 0 <= box.y_min <= y <= box.y_max <= 1
    if min(whole.x_min, whole.y_min) >= 0 and max(whole.x_max, whole.y_max) <= 1:
        assert box == whole


def test_found_things_are_plain_numbers(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = encoded(tiny(), noise)
    box, point = model.detect("star")[0], model.point("star")[0]
    assert [type(value) for value in (box.x_min, box.y_min, box.x_max, box.y_max, point.x, point.y)] == [float] * 6
    assert isinstance(point, Point)
