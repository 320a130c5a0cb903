"""Our numbers against themselves (step by step and in one pass) and against a naive float64 network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from edge_daemon.moondream import generate, text, vision
from edge_daemon.moondream.attention import Attention
from edge_daemon.moondream.config import BosState, Cropping, Mask, SizeScale
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.linear import PackedLinear
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.parts import Step
from tests.model.checkpoints import modules_of, text_of
from tests.model.naive import Naive

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]

CROPPINGS: tuple[Cropping, ...] = ("template", "overlap")
MASKS: tuple[Mask, ...] = ("causal", "prefix")
BOS_STATES: tuple[BosState, ...] = ("computed", "stored")
SIZE_SCALES: tuple[SizeScale, ...] = ("linear", "log2")

PROMPT, TOKENS = [198, 198, 24334, 1159, 25], [317, 2266, 9197, 319, 257]
STEP_TOLERANCE = 1e-4
NAIVE_TOLERANCE = 2e-5
"""Against float64; what we measure is about 3e-6."""


# -- step by step and in one pass


def step_by_step(model: Moondream, image: Tensor, prompt: list[int], tokens: list[int], again: bool = False) -> Tensor:
    """Logits (1 + tokens, V) behind the prompt and behind each token, through the KV cache.

    The prompt goes in together with the image, or, `again`, as that of a second task behind it.
    """
    with torch.inference_mode():
        model.look_at(image)
        step = model._prompt(prompt)
        rows = [(model._prompt(prompt) if again else step).logits]
        assert model.cache.length == model.config.prefix_positions + len(prompt)
        rows += [generate.prefill(model.text, model.cache, [token]).logits for token in tokens]
        return torch.stack(rows)


def one_pass(model: Moondream, image: Tensor, prompt: list[int], tokens: list[int]) -> Tensor:
    """The same logits from one call on the whole sequence without a cache."""
    config, decoder = model.config, text_of(model)
    with torch.inference_mode():
        bos = decoder.embed(torch.tensor([[config.tokens.bos]]))
        said = decoder.embed(torch.tensor([[*prompt, *tokens]]))
        sequence = torch.cat([bos, image, said], dim=1)
        length, prefix = sequence.shape[1], config.prefix_positions
        query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
        allowed = key <= query
        if config.mask == "prefix":
            allowed |= (query < prefix) & (key < prefix)
        if config.bos_state == "stored":
            allowed[0] = key[0] == 0  # BOS was computed alone
        hidden = decoder(sequence, torch.arange(length), text.masked(allowed))
        return decoder.logits(hidden[:, -1 - len(tokens) :])[0]


def switch(model: Moondream, mask: Mask, bos_state: BosState) -> None:
    """The same weights with another mask and kind of BOS state."""
    model.config = replace(model.config, mask=mask, bos_state=bos_state)
    text_of(model).prefix = model.config.prefix_positions if mask == "prefix" else 0


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def full(half_billion: Path, noise: PictureFactory) -> tuple[Moondream, Tensor]:
    """The 0.5B, and the embeddings of one picture."""
    model = Moondream(half_billion, kv_positions=760)
    model.load()  # as its config says; the tests then change the config
    return model, model.image_embeddings(noise(378, 378))


@pytest.fixture(scope="module")
def full_causal(full: tuple[Moondream, Tensor]) -> Tensor:
    """Logits of the 0.5B in one causal pass; stored and computed BOS are the same thing there."""
    model, image = full
    return one_pass(model, image, PROMPT, TOKENS)


def test_half_a_billion_has_730_prefix_positions_and_logits_of_unit_size(
    full: tuple[Moondream, Tensor], full_causal: Tensor
) -> None:
    model, image = full
    assert model.config.prefix_positions == 730
    assert image.shape == (1, 729, 1024)
    assert full_causal.shape == (6, 51200)
    assert 0.5 < full_causal.std() < 2
    assert difference(full_causal[0], full_causal[1]) > 1  # rows are not all alike


@pytest.mark.parametrize("bos_state", BOS_STATES)
def test_half_a_billion_causal(full: tuple[Moondream, Tensor], full_causal: Tensor, bos_state: BosState) -> None:
    model, image = full
    switch(model, "causal", bos_state)
    assert difference(step_by_step(model, image, PROMPT, TOKENS), full_causal) < STEP_TOLERANCE


def test_half_a_billion_prefix(full: tuple[Moondream, Tensor], full_causal: Tensor) -> None:
    """As the checkpoints of 2025 are; this mask with a stored BOS is tried in the tiny shape."""
    model, image = full
    switch(model, "prefix", "computed")
    steps = step_by_step(model, image, PROMPT, TOKENS)
    assert difference(steps, one_pass(model, image, PROMPT, TOKENS)) < STEP_TOLERANCE
    assert difference(steps, full_causal) > 0.1  # the mask matters, so the comparison means something


@pytest.mark.parametrize("bos_state", BOS_STATES)
@pytest.mark.parametrize("mask", MASKS)
def test_tiny_in_one_pass(tiny: TinyFactory, noise: PictureFactory, mask: Mask, bos_state: BosState) -> None:
    model = Moondream(tiny(mask=mask, bos_state=bos_state))
    assert parity(model, noise) < STEP_TOLERANCE


def parity(model: Moondream, noise: PictureFactory) -> float:
    """How far the two ways are apart."""
    image = model.image_embeddings(noise(30, 30))
    prompt, tokens = model.config.templates.caption["normal"], [20, 21, 22, 23]
    whole = one_pass(model, image, prompt, tokens)
    assert 0.5 < whole.std() < 2
    return max(difference(step_by_step(model, image, prompt, tokens, again), whole) for again in (False, True))


# -- mutations that the comparison above must see


def attend_by(diagonal: int, q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    new = q.shape[2]
    if new == 1:
        return text.masked(None)(q, k, v)
    return text.masked(torch.ones(new, past + new, dtype=torch.bool).tril(diagonal))(q, k, v)


def attend_one_ahead(q: Tensor, k: Tensor, v: Tensor, past: int, prefix: int) -> Tensor:
    return attend_by(past + 1, q, k, v, past)


def attend_not_to_itself(q: Tensor, k: Tensor, v: Tensor, past: int, prefix: int) -> Tensor:
    return attend_by(past - 1, q, k, v, past)


def attend_from_the_start_again(q: Tensor, k: Tensor, v: Tensor, past: int, prefix: int) -> Tensor:
    return attend_by(0, q, k, v, past)


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, past: int, prefix: int) -> Tensor:
    return text.masked(None)(q, k, v)


def positions_one_too_many(decoder: text.Text, cache: KVCache, x: Tensor) -> Step:
    # behind the prefix only: a shift of everything changes nothing
    return extended_at(cache.length + (cache.length > 1), decoder, cache, x)


def positions_from_zero(decoder: text.Text, cache: KVCache, x: Tensor) -> Step:
    return extended_at(0, decoder, cache, x)


def extended_at(start: int, decoder: text.Text, cache: KVCache, x: Tensor) -> Step:
    attention = partial(text.attend, past=cache.length, prefix=decoder.prefix)
    hidden = decoder(x, torch.arange(start, start + x.shape[1]), attention, cache)[:, -1:]
    return Step(hidden, lambda: decoder.logits(hidden))


def write_one_too_early(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    begin = max(0, cache.length - 1)
    end = cache.length + k.shape[2]
    keys, values = cache._kv[layer]
    keys[:, begin : end - (cache.length - begin)], values[:, begin : end - (cache.length - begin)] = k[0], v[0]
    return keys[None, :, :end], values[None, :, :end]


def keys_unrotated(x: Tensor, table: Tensor) -> Tensor:
    return x if x.dim() == 2 or x.shape[-2] == 1 else text_rotate(x, table)


text_rotate = text.rotate


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (text, "attend", attend_one_ahead),
        (text, "attend", attend_not_to_itself),
        (text, "attend", attend_from_the_start_again),
        (text, "attend", attend_to_all),
        (text.Text, "extend", positions_one_too_many),
        (text.Text, "extend", positions_from_zero),
        (KVCache, "update", write_one_too_early),
        (text, "rotate", keys_unrotated),
    ],
)
def test_parity_breaks_when_the_cached_way_is_wrong(
    tiny: TinyFactory,
    noise: PictureFactory,
    monkeypatch: pytest.MonkeyPatch,
    mask: Mask,
    where: object,
    name: str,
    wrong: Callable[..., object],
) -> None:
    model = Moondream(tiny(mask=mask))
    monkeypatch.setattr(where, name, wrong)
    assert parity(model, noise) > 3 * STEP_TOLERANCE


def test_parity_breaks_when_the_mask_is_the_other_one(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    image = model.image_embeddings(noise(30, 30))
    causal = one_pass(model, image, [9], [20, 21])
    switch(model, "prefix", "computed")
    assert difference(step_by_step(model, image, [9], [20, 21]), causal) > 10 * STEP_TOLERANCE


# -- the naive network


@pytest.mark.parametrize("size_scale", SIZE_SCALES)
@pytest.mark.parametrize("bos_state", BOS_STATES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cropping", CROPPINGS)
def test_every_task_is_the_naive_one(
    tiny: TinyFactory,
    noise: PictureFactory,
    cropping: Cropping,
    mask: Mask,
    bos_state: BosState,
    size_scale: SizeScale,
) -> None:
    """From the picture to boxes and points, in every combination; a stored BOS is random, so it must be used."""
    directory = tiny(cropping, mask, bos_state, size_scale, own_bos=False)
    model, naive = Moondream(directory), Naive(directory)
    picture = noise(44, 40)
    image = naive.image_embeddings(picture, (2, 2) if cropping == "template" else (3, 4))
    assert np.abs(model.image_embeddings(picture)[0].numpy() - image).max() < NAIVE_TOLERANCE

    model.encode(picture)
    templates = model.config.templates
    prompt = templates.caption["normal"]
    tokens, logits = naive.greedy(image, prompt, 4)
    ours = step_by_step(model, torch.from_numpy(image).float()[None], prompt, tokens[:-1])
    assert 0.5 < logits.std() < 2
    assert np.abs(ours.numpy() - logits).max() < NAIVE_TOLERANCE
    assert not {0, 1} & set(tokens), "the seed makes this answer end early: choose another"
    assert model.caption("normal", Sampling(max_tokens=4)).text == model.tokenizer.decode(tokens).strip()

    assert templates.detect is not None
    assert templates.point is not None
    detect = [*templates.detect["prefix"], *model.tokenizer.encode(" red star"), *templates.detect["suffix"]]
    boxes = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in model.detect("red star")[:2]]
    centred = naive.regions(image, detect, most=2, sized=True)
    wanted = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in centred]
    assert len(wanted) == 2
    np.testing.assert_allclose(boxes, wanted, atol=1e-6)

    point = [*templates.point["prefix"], *model.tokenizer.encode(" sky"), *templates.point["suffix"]]
    points = [(p.x, p.y) for p in model.point("sky")[:2]]
    np.testing.assert_allclose(points, naive.regions(image, point, most=2, sized=False), atol=1e-6)


@pytest.mark.parametrize("cropping", CROPPINGS)
def test_a_picture_without_tiles_is_the_naive_one(tiny: TinyFactory, noise: PictureFactory, cropping: Cropping) -> None:
    model, naive = Moondream(tiny(cropping)), Naive(tiny(cropping))
    picture = noise(31, 29)  # wider than high: Pillow then resizes in the order of passes that we prescribe
    ours = model.image_embeddings(picture)[0].numpy()
    assert np.abs(ours - naive.image_embeddings(picture, (1, 1))).max() < NAIVE_TOLERANCE


def backwards(x: Tensor, table: Tensor) -> Tensor:
    return text_rotate(x, torch.stack([table[0], -table[1]]))


def neighbouring_pairs(x: Tensor, table: Tensor) -> Tensor:
    cos, sin = table
    width = 2 * cos.shape[-1]
    real, imag = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack([real * cos - imag * sin, real * sin + imag * cos], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., width:]], dim=-1)


def exact_gelu(self: PackedLinear, x: Tensor) -> Tensor:
    return F.gelu(self(x))


def sequential_block(
    self: text.TextBlock,
    x: Tensor,
    turn: text.Turn,
    attention: Attention,
    cache: KVCache | None,
    layer: int,
    rows: int = 0,
) -> Tensor:
    x = x + self.attn.join(attention(*self.attn.heads(self.ln(x), turn, cache, layer)))
    return cast("Tensor", x + self.mlp(self.ln(x)))[:, -rows:]


def channels_last(crops: Tensor, patch_px: int) -> Tensor:
    n, c, s, _ = crops.shape
    g = s // patch_px
    return crops.reshape(n, c, g, patch_px, g, patch_px).permute(0, 2, 4, 3, 5, 1).reshape(n, g * g, -1)


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (text, "rotate", backwards),
        (text, "rotate", neighbouring_pairs),
        (text, "ROTARY_THETA", 1000.0),
        (PackedLinear, "gelu", exact_gelu),
        (text.TextBlock, "forward", sequential_block),
        (vision, "patches_of", channels_last),
    ],
)
def test_the_naive_comparison_breaks_when_the_network_is_wrong(
    tiny: TinyFactory,
    noise: PictureFactory,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    wrong: object,
) -> None:
    """What a comparison of our code with itself cannot see."""
    monkeypatch.setattr(where, name, wrong)
    model, naive = Moondream(tiny()), Naive(tiny())
    prompt = model.config.templates.caption["short"]
    _, logits = naive.greedy(naive.image_embeddings(noise(30, 30), (1, 1)), prompt, 1)
    ours = step_by_step(model, model.image_embeddings(noise(30, 30)), prompt, [])
    assert np.abs(ours.numpy() - logits).max() > 10 * NAIVE_TOLERANCE


def interleaved_output(x: Tensor, table: Tensor) -> Tensor:
    """Upstream's layout: the same pairs, side by side afterwards."""
    turned = text_rotate(x, table)
    half = table.shape[-1]
    pairs = torch.stack([turned[..., :half], turned[..., half : 2 * half]], dim=-1).flatten(-2)
    return torch.cat([pairs, turned[..., 2 * half :]], dim=-1)


def test_the_rotary_layout_shows_only_in_a_stored_state(
    tiny: TinyFactory, noise: PictureFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cancels out in q·k, so either layout is right; but keys of a file must be in ours."""
    differences = {}
    for bos_state in BOS_STATES:
        model = Moondream(tiny(bos_state=bos_state, own_bos=bos_state == "computed"))
        image = model.image_embeddings(noise(30, 30))
        before = step_by_step(model, image, [9], [20, 21])
        with monkeypatch.context() as patch:
            patch.setattr(text, "rotate", interleaved_output)
            differences[bos_state] = difference(step_by_step(model, image, [9], [20, 21]), before)
    assert differences["computed"] < STEP_TOLERANCE
    assert differences["stored"] > 10 * STEP_TOLERANCE


def test_every_layer_norm_has_the_published_epsilon(tiny: TinyFactory) -> None:
    model = Moondream(tiny())
    norms = [m for part in modules_of(model)[:2] for m in part.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1 + 3 + 1
    assert {norm.eps for norm in norms} == {1e-5}
