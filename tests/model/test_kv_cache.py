"""The KV cache: allocated once, never moved, rewound between tasks, and never silently overrun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_daemon.errors import BudgetError, CaptionError, PictureError
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.model import Moondream, each
from tests.model.checkpoints import HALF_BILLION, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]
LONG = Sampling(max_tokens=10)


def test_its_size_is_what_the_config_promises() -> None:
    config = tiny_config()
    cache = KVCache(config, 150)
    assert cache.size_bytes == 150 * config.kv_values_per_position * 4 == 150 * 3 * 2 * 32 * 4
    assert (cache.length, cache.free) == (0, 150)


@pytest.mark.parametrize("positions", [-1, 0, 1, 100, 101, 201, 10**6])
def test_an_unusable_size_is_refused_with_numbers(tiny: TinyFactory, positions: int) -> None:
    with pytest.raises(BudgetError, match=rf"{positions} positions.*more than 101.*200 at most"):
        Moondream(tiny(), kv_positions=positions)


def test_the_published_model_needs_731_positions() -> None:
    short = replace(HALF_BILLION, text=replace(HALF_BILLION.text, layers=1))
    with pytest.raises(BudgetError, match=r"moondream-0\.5b needs more than 730 .* 2048 at most"):
        KVCache(short, 730)
    assert KVCache(short, 731).positions == 731


def test_it_defaults_to_the_context(tiny: TinyFactory) -> None:
    assert Moondream(tiny()).cache.positions == 200


def test_it_is_never_reallocated(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny(bos_state="stored"), kv_positions=130)
    buffer = model.cache._kv
    address, storage_bytes = buffer.data_ptr(), buffer.untyped_storage().nbytes()
    for seed in range(3):
        model.encode(noise(44, 40, seed))
        model.caption("normal", LONG)
        model.query("what is it", LONG)
        model.detect("star")
        model.point("star")
        assert model.cache._kv is buffer
    assert (buffer.data_ptr(), buffer.untyped_storage().nbytes()) == (address, storage_bytes)
    assert storage_bytes == model.cache.size_bytes


def test_what_update_returns_are_views(tiny: TinyFactory) -> None:
    cache = KVCache(tiny_config(), 150)
    cache._kv.zero_()
    k, v = torch.randn(2, 1, 4, 3, 8)
    keys, values = cache.update(1, k, v)
    for view, written in ((keys, k), (values, v)):
        assert torch.equal(view, written)
        assert view.untyped_storage().data_ptr() == cache._kv.untyped_storage().data_ptr()
    assert cache.length == 0
    cache.advance(3)
    keys, _ = cache.update(1, k, v)
    assert torch.equal(keys, torch.cat([k, k], dim=2))
    assert not cache._kv[0].any()
    assert not cache._kv[2].any()


@pytest.mark.parametrize(("positions", "new"), [(102, 103), (110, 111), (150, 200)])
def test_it_is_not_overrun(positions: int, new: int) -> None:
    cache = KVCache(tiny_config(), positions)
    with pytest.raises(IndexError, match=f"{new} positions do not fit"):
        cache.update(0, torch.zeros(1, 4, new, 8), torch.zeros(1, 4, new, 8))
    cache.advance(positions)
    with pytest.raises(IndexError, match="1 positions do not fit"):
        cache.update(0, torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8))


def test_it_rewinds_backwards_only() -> None:
    cache = KVCache(tiny_config(), 150)
    cache.advance(20)
    cache.rewind(5)
    assert cache.length == 5
    for length in (6, -1):
        with pytest.raises(IndexError, match="cannot rewind"):
            cache.rewind(length)


# -- one picture, many tasks


def all_answers(model: Moondream) -> list[object]:
    texts = [model.caption("short", LONG).text, model.caption("normal", LONG).text, model.query("why", LONG).text]
    return [*texts, model.detect("red star"), model.point("sky")]


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("bos_state", ["stored", "computed"])
def test_an_answer_does_not_depend_on_the_tasks_before(
    tiny: TinyFactory, noise: PictureFactory, mask: str, bos_state: str
) -> None:
    model = Moondream(tiny("template", mask, bos_state), kv_positions=130)
    model.encode(noise(30, 30))
    first = all_answers(model)
    assert len({str(answer) for answer in first}) == len(first)
    assert all_answers(model)[::-1] == first[::-1]
    assert model.point("sky") == first[4]
    assert model.caption("normal", LONG).text == first[1]


def test_an_answer_does_not_depend_on_the_pictures_before(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny(), kv_positions=130)
    answers = []
    for seed in (1, 2, 1):
        model.encode(noise(30, 30, seed))
        answers.append(all_answers(model))
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]
    fresh = Moondream(tiny(), kv_positions=130)
    fresh.encode(noise(30, 30, 2))
    assert all_answers(fresh) == answers[1]


def test_an_answer_does_not_depend_on_the_size_of_the_cache(tiny: TinyFactory, noise: PictureFactory) -> None:
    answers = []
    for positions in (140, 200):
        model = Moondream(tiny(), kv_positions=positions)
        model.encode(noise(30, 30))
        answers.append([model.caption("short", LONG).text, model.query("why", LONG).text])
    assert answers[0] == answers[1]


def test_no_task_without_a_picture(tiny: TinyFactory) -> None:
    model = Moondream(tiny())
    tasks: list[Callable[[], object]] = [
        lambda: model.caption("short", LONG),
        lambda: model.query("why", LONG),
        lambda: model.detect("sky"),
        lambda: model.point("sky"),
    ]
    for task in tasks:
        with pytest.raises(CaptionError, match="no picture has been encoded"):
            task()


def test_no_task_on_the_picture_before_when_encoding_failed(
    tiny: TinyFactory, noise: PictureFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Moondream(tiny())
    model.encode(noise(30, 30))

    def broken(picture: Image.Image) -> torch.Tensor:
        raise PictureError("broken")

    monkeypatch.setattr(model, "image_embeddings", broken)
    with pytest.raises(PictureError):
        model.encode(noise(30, 30))
    with pytest.raises(CaptionError, match="no picture has been encoded"):
        model.caption("short", LONG)


# -- a small cache


def test_a_small_cache_ends_a_caption_at_a_word(tiny: TinyFactory, noise: PictureFactory) -> None:
    """For every cap, what is said is the beginning of the whole caption, cut where a word ends."""
    prompt = len(tiny_config().templates.caption["short"])
    model = Moondream(tiny())
    cut_inside_a_word = 0
    for seed in range(4):
        model.encode(noise(30, 30, seed))
        tokens: list[int] = []
        whole = model.caption("short", LONG, tokens.append)
        for free in range(9):
            small = Moondream(tiny(), kv_positions=101 + prompt + free)
            small.encode(noise(30, 30, seed))
            answer = small.caption("short", LONG)
            if free >= whole.tokens:
                assert answer.text == whole.text
                continue
            assert (answer.finish_reason, answer.tokens) == ("memory", free + 1)
            assert small.cache.free == 0
            assert whole.text.startswith(answer.text)
            if " " in answer.text:
                assert f"{whole.text} ".startswith(f"{answer.text} ")
            said = model.tokenizer.decode(tokens[: free + 1]).strip()
            cut_inside_a_word += not f"{whole.text} ".startswith(f"{said} ")
    assert cut_inside_a_word > 0, "no cap fell inside a word: this test shows nothing"


def test_a_prompt_that_just_fits_is_answered(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny(), kv_positions=101 + 3)
    model.encode(noise(30, 30))
    answer = model.caption("short", LONG)
    assert (answer.finish_reason, answer.tokens) == ("memory", 1)


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny(), kv_positions=101 + 3)
    model.encode(noise(30, 30))
    with pytest.raises(CaptionError, match=r"prompt takes 4 positions.* 3 of 104 left"):
        model.caption("normal", LONG)
    with pytest.raises(CaptionError, match="prompt takes 6 positions"):
        model.query(" red star", LONG)
    assert model.caption("short", LONG).tokens == 1, "the picture is still there"


@pytest.mark.parametrize("free", range(9))
def test_a_small_cache_ends_a_search_at_a_whole_object(tiny: TinyFactory, noise: PictureFactory, free: int) -> None:
    """A box takes three positions, a point two; never half of one."""
    whole = Moondream(tiny())
    whole.encode(noise(30, 30))
    model = Moondream(tiny(), kv_positions=101 + 3 + free)
    model.encode(noise(30, 30))
    assert model.detect("star") == whole.detect("star")[: free // 3]
    assert model.point("star") == whole.point("star")[: free // 2]
    assert each(model.boxes("star"), lambda box: None) == each(model.points("star"), lambda point: None) == "memory"


# -- a cache that is made smaller


def test_a_cap_in_the_middle_ends_a_caption_at_a_word(tiny: TinyFactory, noise: PictureFactory) -> None:
    """Set by another thread, as the daemon's word is: here by whoever is told of every token."""
    model = Moondream(tiny())
    model.encode(noise(30, 30))
    whole = model.caption("short", LONG)
    assert whole.tokens > 5
    model.encode(noise(30, 30))
    heard: list[int] = []

    def told(token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            model.cache.cap = 101 + 3

    answer = model.caption("short", LONG, told)
    assert (answer.finish_reason, answer.tokens, len(heard)) == ("memory", 3, 3)
    assert f"{whole.text} ".startswith(f"{answer.text} ")
    assert model.caption("short", LONG).tokens == 1, "the next task keeps to it"
    with pytest.raises(CaptionError, match=r"prompt takes 4 positions.* 3 of 104 left"):
        model.caption("normal", LONG)


def test_it_shrinks_and_grows_and_answers_the_same(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    model.encode(noise(30, 30))
    whole = model.caption("short", LONG)
    full_bytes, written = model.cache.size_bytes, model.cache.length
    assert model.cache.touched_bytes == written * full_bytes // 200
    model.shrink(108)
    assert (model.cache.positions, model.cache.free, model.cache.touched_bytes) == (108, 108, 0)
    assert model.cache.size_bytes == full_bytes * 108 // 200
    with pytest.raises(CaptionError, match="no picture has been encoded"):
        model.caption("short", LONG)
    model.encode(noise(30, 30))
    assert model.caption("short", LONG).tokens == 108 - 101 - 3 + 1
    model.shrink(200)
    model.encode(noise(30, 30))
    assert model.caption("short", LONG).text == whole.text
    with pytest.raises(BudgetError, match=r"101 positions.*more than 101"):
        model.shrink(101)


def test_what_is_in_half_precision_shrinks_with_what_it_is_read_in() -> None:
    cache = KVCache(tiny_config(), 150, dtype=torch.float16, read_dtype=torch.float32)
    half, layer = 150 * 3 * 2 * 32 * 2, 150 * 2 * 32 * 4
    assert cache.size_bytes == half + layer
    cache.update(0, torch.zeros(1, 4, 15, 8), torch.zeros(1, 4, 15, 8))
    cache.advance(15)
    assert cache.touched_bytes == (half + layer) // 10
    assert cache.packed().shape == cache.filled().shape
    assert cache.touched_bytes == (2 * half + layer) // 10, "with the copy that has no gaps"
    cache.append(torch.zeros(3, 2, 4, 15, 8))
    assert cache.touched_bytes == (2 * half + layer) // 5, "with what came ready-made"
    cache.resize(120)
    assert cache.size_bytes == (half + layer) * 120 // 150
    assert cache.packed().numel() == 0


def test_a_cap_that_comes_while_the_buffer_changes_holds() -> None:
    """The thread that hears it does not wait until an earlier one has been obeyed."""
    cache = KVCache(tiny_config(), 200)
    cache.cap = 110
    cache.resize(150)
    assert (cache.positions, cache.allowed, cache.free) == (150, 110, 110)
    cache.cap = 200
    assert cache.free == 150
