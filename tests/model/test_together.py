"""Captions and answers that are generated together are those of one after the other, to the token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.evaluate import shrunk
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import CaptionError
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Answer, Moondream
from edge_daemon.moondream.tails import PROMPT_POSITIONS, Tails, groups, order_of
from edge_daemon.moondream.text import Text

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]
Asked = list[tuple[str, str]]
TASKS: Asked = [
    ("caption", "short"),
    ("query", "How many shapes are there?"),
    ("query", "Is there a red circle?"),
    ("caption", "normal"),
    ("query", "What is on the left?"),
    ("query", "What colour is the square?"),
]
TINY: Asked = [("caption", "short"), ("query", " is the star red"), ("caption", "normal"), ("query", " sky")]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every run of a decoder in which several texts went together."""
    rows: list[int] = []
    original = Text.extend_tails

    def counted(text: Text, cache: object, embeddings: object, placed: object, count: int) -> object:
        rows.append(count)
        return original(text, cache, embeddings, placed, count)  # type: ignore[arg-type]

    monkeypatch.setattr(Text, "extend_tails", counted)
    return rows


def one_after_the_other(model: Moondream, asked: Asked, sampling: Sampling) -> list[tuple[str, int, str]]:
    ask = {"caption": model.caption, "query": model.query}
    return [said(ask[kind](text, sampling)) for kind, text in asked]


def said(answer: Answer | CaptionError) -> tuple[str, int, str]:
    assert isinstance(answer, Answer), answer
    return answer.text, answer.tokens, answer.finish_reason


@pytest.mark.parametrize("int8", [False, True])
def test_six_tasks_on_twenty_pictures(tmp_path: Path, runs: list[int], int8: bool) -> None:
    """In int8 all rows of a run share the scale of their activations: a rare answer may be another one."""
    model, sampling = Moondream(MODEL_DIR, int8=int8), Sampling(40)
    lengths, others = set(), 0
    for path, _ in sample_pictures(tmp_path, 20, seed=11):
        with Image.open(path) as opened:
            picture = shrunk(opened.convert("RGB"))
        model.encode(picture)
        alone = one_after_the_other(model, TASKS, sampling)
        runs.clear()
        model.encode(picture)
        together = [said(answer) for answer in model.ask(TASKS, sampling)]
        others += sum(one != other for one, other in zip(together, alone, strict=True))
        longest = max(answer[1] for answer in together)
        assert len(runs) == 1 + longest, "every token of all of them in one run"
        assert runs == sorted(runs, reverse=True), "who has ended takes no part"
        lengths |= {answer[1] for answer in alone}
    assert others <= (1 if int8 else 0)
    assert len(lengths) > 5


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("bos_state", ["stored", "computed"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_kind_of_checkpoint(
    tiny: TinyFactory, noise: PictureFactory, runs: list[int], mask: str, bos_state: str, temperature: float
) -> None:
    """Each sampled answer has a generator of its own, so what is drawn for one does not depend on the others."""
    model = Moondream(tiny("template", mask, bos_state))
    sampling = Sampling(9, temperature, 0.9, seed=3)
    for seed in range(3):
        model.encode(noise(30, 30, seed))
        alone = one_after_the_other(model, TINY, sampling)
        assert [said(answer) for answer in model.ask(TINY, sampling)] == alone, "with the picture in the cache"
        model.encode(noise(30, 30, seed))
        assert [said(answer) for answer in model.ask(TINY, sampling)] == alone, "with the picture still to come"
        assert [said(answer) for answer in model.ask(TINY[::-1], sampling)] == alone[::-1]
        assert model.detect("star") == model.detect("star")
    assert max(runs) == len(TINY)


@pytest.mark.parametrize("positions", [104, 110, 122, 131, 140, 160, 200])
def test_a_short_cache_takes_fewer_at_a_time(
    tiny: TinyFactory, noise: PictureFactory, runs: list[int], positions: int
) -> None:
    model, sampling = Moondream(tiny(), kv_positions=positions), Sampling(9)
    model.encode(noise(30, 30))
    alone: list[tuple[object, ...]] = []
    for kind, text in TINY:
        try:
            alone += one_after_the_other(model, [(kind, text)], sampling)
        except CaptionError as error:
            alone.append((str(error),))
    model.encode(noise(30, 30))
    answers = model.ask(TINY, sampling)
    assert [(str(a),) if isinstance(a, CaptionError) else said(a) for a in answers] == alone
    assert max(runs, default=1) == {104: 1, 110: 1, 122: 1, 131: 2, 140: 3, 160: 4, 200: 4}[positions]


def test_a_cap_in_the_middle_ends_all_at_a_word(tiny: TinyFactory, noise: PictureFactory) -> None:
    model, sampling = Moondream(tiny()), Sampling(10)
    model.encode(noise(30, 30))
    whole = one_after_the_other(model, TINY, sampling)
    model.encode(noise(30, 30))
    heard: list[int] = []

    def told(token: int) -> None:
        heard.append(token)
        if len(heard) == 3 * len(TINY):
            model.cache.cap = 110

    answers = model.ask(TINY, sampling, told)
    for answer, (text, _, _) in zip(answers, whole, strict=True):
        assert said(answer)[1:] == (3, "memory")
        assert f"{text} ".startswith(f"{said(answer)[0]} ")


def test_what_cannot_be_asked_leaves_the_others_alone(tiny: TinyFactory, noise: PictureFactory) -> None:
    model, sampling = Moondream(tiny()), Sampling(6)
    model.encode(noise(30, 30))
    alone = one_after_the_other(model, TINY, sampling)
    nothing, *others = model.ask([("caption", "endless"), *TINY], sampling)
    assert isinstance(nothing, CaptionError)
    assert "has no 'endless' caption" in str(nothing)
    assert [said(answer) for answer in others] == alone


def test_without_a_picture_each_is_told_so(tiny: TinyFactory) -> None:
    answers = Moondream(tiny()).ask(TINY, Sampling(6))
    assert [str(answer) for answer in answers] == ["no picture has been encoded"] * len(TINY)
    assert Moondream(tiny()).ask([], Sampling(6)) == []


def test_what_fails_in_company_is_asked_alone(
    tiny: TinyFactory, noise: PictureFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text whose logits are no numbers does not cost the others their answers."""
    model, sampling = Moondream(tiny()), Sampling(6)
    model.encode(noise(30, 30))
    alone = one_after_the_other(model, TINY, sampling)
    embed = Text.embed

    def poisoned(text: Text, tokens: torch.Tensor) -> torch.Tensor:
        embedded = embed(text, tokens)
        return embedded.masked_fill(tokens[..., None] == 43, float("nan"))  # a token of the normal caption only

    monkeypatch.setattr(Text, "embed", poisoned)
    model.encode(noise(30, 30))
    answers = model.ask(TINY, sampling)
    assert "not numbers (NaN)" in str(answers[2])
    assert [said(answer) for answer in (*answers[:2], answers[3])] == [*alone[:2], alone[3]]


def test_who_sees_whom() -> None:
    tokens, owners = order_of([[1, 2, 3], [4], [5, 6]])
    assert (tokens, owners) == ([1, 2, 5, 3, 4, 6], [0, 0, 2, 0, 1, 2])
    tails = Tails(2, 3)
    first = tails.add(owners, picture=1)
    assert first.positions.tolist() == [1, 2, 3, 2, 4, 2, 3]
    assert (first.picture, first.seen.shape) == (1, (6, 8))
    second = tails.add([0, 2])
    assert second.positions.tolist() == [5, 4]
    assert second.seen.int().tolist() == [[1, 1, 1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("lengths", "free", "expected"),
    [
        ([], 100, []),
        ([5, 5, 5], 100, [[0, 1, 2]]),
        ([5, 5, 5], 42, [[0, 1, 2]]),
        ([5, 5, 5], 41, [[0, 1], [2]]),
        ([5, 50, 5], 42, [[0], [1], [2]]),
        ([5, 5], 3, [[0], [1]]),
        ([PROMPT_POSITIONS - 5, 5, 1], 10_000, [[0, 1], [2]]),
        ([PROMPT_POSITIONS + 5, 5, 1], 10_000, [[0], [1, 2]]),
    ],
)
def test_as_many_go_together_as_the_cache_holds(lengths: list[int], free: int, expected: list[list[int]]) -> None:
    assert groups(lengths, 10, free) == expected
