"""int8: what is taken back without loss, what is rounded, and what that does to what is said."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.scenes import draw, random_scene
from edge_daemon.errors import ModelError
from edge_daemon.models.graphs import quantized
from edge_daemon.moondream import attention as attention_module
from edge_daemon.moondream import cpu, generate, mlas, quantize, torch_parts, trials
from edge_daemon.moondream import model as moondream_model
from edge_daemon.moondream.attention import ROWS, Attention, Way, by_head, in_bfloat16
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.linear import Linear, PackedLinear, gelu
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.quantize import (
    KERNELS,
    LOSSLESS,
    FineLinear,
    Int8Linear,
    Levels,
    full_range,
    has_bfloat16,
    levels_of,
    multiplies_bfloat16,
)
from edge_daemon.moondream.vision import VisionAttention
from tests.clock import Clock
from tests.model.checkpoints import modules_of, random_tensors, tiny_config, write_tensors

PictureFactory = Callable[..., Image.Image]

SCENES = 150
SAME_CAPTIONS = 0.99
PICTURES, STEPS = 9, 56
"""500 greedy steps and some."""
SAME_TOKENS = 0.95
CORRELATION = 0.99
WORST_ROW = 0.03
"""Relative error of one row of attention in bfloat16; measured: 0.02, and 0.1 or more with one key too many."""


def floats_of(levels: Levels) -> Tensor:
    return ((levels.levels - levels.zeros[:, None]) * levels.scales[:, None]).float()


# -- weights


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_published_int8_weights_are_taken_back_as_they_were(rows: int, symmetric: bool, per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    low = -127 if symmetric else -128
    levels = torch.randint(low, 128, (rows, 40), generator=generator)
    levels[:, 0], levels[:, 1] = low, 127  # as a published range is that of the weights themselves
    scales = torch.rand(rows if per_channel else 1, 1, generator=generator) + 0.01
    zeros = torch.zeros(1, 1) if symmetric else torch.randint(-20, 20, scales.shape, generator=generator)
    weight = (levels - zeros).float() * scales
    found = levels_of(weight)
    assert found.off <= LOSSLESS
    assert torch.equal(found.levels.long(), levels)
    assert torch.equal(found.zeros[:, None].expand(rows, 1), zeros.long().expand(rows, 1))
    assert torch.allclose(floats_of(found), weight, rtol=1e-5, atol=0)


@given(st.integers(1, 300), st.integers(1, 50), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(0, 99))
def test_other_weights_are_at_most_half_a_level_off(rows: int, columns: int, size: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    found = levels_of(weight)
    spans = weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)
    assert (floats_of(found) - weight).abs().amax(1).le(spans / 255 * 0.51).all()


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.full((3, 5), 2.0), torch.full((3, 5), -1e-30)])
def test_constant_weights_are_no_trouble(weight: Tensor) -> None:
    assert torch.allclose(floats_of(levels_of(weight)), weight, rtol=1e-4)


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="FBGEMM is for x86-64")
WAYS = [pytest.param(KERNELS["x86_64"], marks=X86, id="fbgemm"), pytest.param(KERNELS["aarch64"], id="mlas")]


@X86
def test_activations_have_seven_bits_where_eight_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert full_range("flags\t\t: fpu avx2 avx512_vnni")
    assert not full_range("flags\t\t: fpu avx2 avx_vnni")
    monkeypatch.setattr(quantize, "seven_bits", lambda: True)
    layer = Linear(720, 300).requires_grad_(False)
    x = torch.randn(5, 720, generator=torch.Generator().manual_seed(1))
    off = relative(Int8Linear(layer)(x), layer(x))
    monkeypatch.setattr(quantize, "seven_bits", lambda: False)
    assert relative(Int8Linear(layer)(x), layer(x)) < off < 0.03, "a bit less is a little worse"


PI_4, PI_5 = "Features\t: fp asimd evtstrm crc32 cpuid", "Features\t: fp asimd aes atomics asimddp"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "seven"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni", False),
        ("aarch64", PI_4, False),
        ("aarch64", PI_5, False),
    ],
)
def test_more_layers_are_fine_where_activations_have_seven_bits(
    machine: str, cpuinfo: str, seven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(quantize, "cpuinfo_here", lambda: cpuinfo)
    monkeypatch.setattr(quantize, "seven_bits", asked := quantize.seven_bits.__wrapped__)
    assert asked() is seven
    monkeypatch.setitem(KERNELS, machine, KERNELS["aarch64"])  # both have it
    layer = Linear(40, 24).requires_grad_(False)
    names = {"vision": ("patch_emb", "blocks.20.mlp.fc1"), "text": ("blocks.1.attn.qkv", "blocks.9.attn.proj")}
    for part in ("vision", "text"):
        always, then = (quantize.in_int8(layer, part, name) for name in names[part])
        assert isinstance(always, FineLinear)
        assert isinstance(then, FineLinear) is seven
    assert not isinstance(quantize.in_int8(layer, "text", "blocks.9.mlp.fc1"), FineLinear)


def test_weights_lose_their_sign_where_pairs_of_products_would_wrap() -> None:
    one, two = torch.full((3, 8), 127, dtype=torch.int8), torch.full((3, 8), -127, dtype=torch.int8)
    one[:, 4] = two[1, 2:4] = -128
    for levels, safe in ((one, True), (two, False)):
        assert mlas.signed(levels, "aarch64", PI_5)
        assert mlas.signed(levels, "aarch64", PI_4) is safe
        assert mlas.signed(levels, "x86_64", "flags\t\t: fpu avx2 avx512_vnni")
        assert not mlas.signed(levels, "x86_64", "flags\t\t: fpu avx2")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize("per_channel", [False, True])
def test_products_of_the_runtime_are_exact(rows: int, per_channel: bool, signed: bool) -> None:
    """The worst that there is: activations at their lowest level beside weights at −128, all in a row."""
    generator = torch.Generator().manual_seed(rows)
    channels = 40 if per_channel else 1
    levels = torch.randint(-128, 128, (40, 333), generator=generator).to(torch.int8)
    levels[:20] = -128
    here = platform.machine(), cpu.cpuinfo_here()
    if signed and not mlas.signed(levels, *here):
        levels.clamp_(min=-127)
        if not mlas.signed(levels, *here):
            pytest.skip("never signed on this processor")
    scales = torch.rand(channels, generator=generator, dtype=torch.float64)
    zeros, bias = torch.randint(-128, 128, (channels,), generator=generator), torch.randn(40, generator=generator)
    multiply = mlas.product(levels, scales, zeros, bias, signed)
    x = torch.randint(0, 256, (2, rows, 333), generator=generator).float() - 100
    x[..., :200], x[..., 200] = -100, 155  # all of its 256 levels: x is not rounded
    exact = x.double() @ ((levels - zeros[:, None]) * scales[:, None]).T + bias
    assert multiply(x).dtype == torch.float32
    assert torch.allclose(multiply(x).double(), exact, rtol=1e-5, atol=1e-2)


def test_a_wrapping_pair_is_no_theory() -> None:
    """On a Cortex-A72 the signed kernel is wrong, which is why it is not asked."""
    if platform.machine() != "aarch64" or cpu.DOT_PRODUCTS & cpu.flags(cpu.cpuinfo_here()):
        pytest.skip("for a processor of the Raspberry Pi 4")
    levels, one = torch.full((8, 64), -128, dtype=torch.int8), torch.ones(1)
    x = torch.full((1, 64), -128.0)
    x[0, ::5] = 127
    wrong, right = (mlas.product(levels, one, 0 * one, torch.zeros(8), signed)(x) for signed in (True, False))
    assert torch.allclose(right, -128 * x.sum().expand(1, 8))
    assert not torch.allclose(wrong, right, rtol=0.1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        *("text.blocks.1.mlp.fc1.weight", "text.blocks.1.mlp.fc1.bias", "text.blocks.0.ln.weight", "text.bos_kv"),
        *("text.post_ln.bias", "vision.pos_emb", "vision.post_ln.bias", "vision.proj_mlp.fc2.bias"),
    ],
)
def test_damage_is_named(tmp_path: Path, noise: PictureFactory, name: str, wrong: float) -> None:
    """Products in integers make some number of what is none, and a caption would come out."""
    config = tiny_config(bos_state="stored")
    tensors = random_tensors(config, 0)
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[-1] = wrong
    write_tensors(tmp_path, config, tensors)

    def say() -> None:
        model = Moondream(tmp_path, int8=True)
        model.encode(noise(30, 30))
        model.caption("short", Sampling(2))

    with pytest.raises(ModelError, match=rf"safetensors: {name} has values that are not numbers: is the file damaged"):
        say()


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_computes_what_its_levels_say(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, platform.machine(), way)
    generator = torch.Generator().manual_seed(0)
    layer = Linear(720, 2690)
    torch.nn.init.normal_(layer.weight, generator=generator)
    layer.requires_grad_(False)
    found, packed = levels_of(layer.weight), Int8Linear(layer)
    for rows in (1, 2, 300):
        x = torch.randn(rows, 720, generator=generator)
        wanted = torch.nn.functional.linear(x, floats_of(found), layer.bias)
        assert float((packed(x) - wanted).norm() / wanted.norm()) < 0.015
        wanted = torch.nn.functional.gelu(wanted, approximate="tanh")
        assert float((packed.gelu(x) - wanted).norm() / wanted.norm()) < 0.015


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "with an outlier": lambda x: torch.cat([x[..., :-1], x[..., -1:] + 300], dim=-1),
    "all above 0": lambda x: x.abs() + 5,
    "all below 0": lambda x: -x.abs() - 5,
    "tiny": lambda x: x * 1e-4,
    "huge": lambda x: x * 1e6,
    "all the same": torch.ones_like,
    "nothing": torch.zeros_like,
}


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("way", WAYS)
def test_fine_layers_round_to_sixteen_bits(way: Any, activations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, platform.machine(), way)
    generator = torch.Generator().manual_seed(0)
    layer = Linear(720, 270).requires_grad_(False)
    fine, coarse = FineLinear(layer), Int8Linear(layer)
    weights = floats_of(levels_of(layer.weight)).double()
    for rows in (1, 2, 300):
        x = ACTIVATIONS[activations](torch.randn(rows, 720, generator=generator))
        exact = torch.nn.functional.linear(x.double(), weights, layer.bias.double())
        spread = float((x.amax() - x.amin()) / 255 * weights.norm(dim=1).mean())
        off, coarsely_off = (float((one(x) - exact).abs().mean()) for one in (fine, coarse))
        assert off < max(spread / 100, 1e-6 * float(exact.abs().max()))
        assert coarsely_off > 20 * off or torch.equal(x, x[:1, :1].expand_as(x))


@X86
def test_fine_layers_are_fine_with_seven_bits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "seven_bits", lambda: True)
    layer = Linear(720, 270).requires_grad_(False)
    x = torch.randn(300, 720, generator=torch.Generator().manual_seed(1))
    exact = torch.nn.functional.linear(x, floats_of(levels_of(layer.weight)), layer.bias)
    assert relative(FineLinear(layer)(x), exact) < 5e-4


def test_the_gelu_of_small_boards_is_the_published_one() -> None:
    x = torch.linspace(-60, 60, 100_001)
    assert torch.allclose(gelu(x), torch.nn.functional.gelu(x.double(), approximate="tanh").float(), atol=1e-6)
    assert gelu(torch.tensor([float("inf"), -1e30])).tolist() == [float("inf"), 0.0]


def test_layers_without_a_fused_gelu_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(40, 56).requires_grad_(False)
    x = torch.randn(9, 40)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert torch.allclose(PackedLinear(layer).gelu(x), layer.gelu(x), atol=1e-5)


# -- ways of attention


@pytest.mark.parametrize(("way", "worst"), [(in_bfloat16, WORST_ROW), (by_head, 1e-5)])
@pytest.mark.parametrize(
    ("new", "past", "prefix", "batch"),
    [
        (2 * ROWS + 9, 0, 2 * ROWS + 9, 2),
        (2 * ROWS + 9, 1, 0, 1),
        (2 * ROWS + 9, 0, ROWS + 40, 1),
        (ROWS, 0, 0, 1),
        (ROWS + 1, 0, ROWS, 1),
        (9, 300, 290, 1),
        (9, 4, 8, 1),
    ],
)
def test_every_way_of_attention_sees_what_the_mask_says(
    new: int, past: int, prefix: int, batch: int, way: Way, worst: float
) -> None:
    """Of the whole of a crop, of a text, of a prefix and what is behind it, of a text behind a long one."""
    generator = torch.Generator().manual_seed(new)
    q = torch.randn(batch, 3, new, 24, generator=generator)
    k, v = torch.randn(2, batch, 3, past + new, 24, generator=generator)
    i, j = torch.arange(past, past + new)[:, None], torch.arange(past + new)
    seen = (j <= i) | ((i < prefix) & (j < prefix))
    ours = way(new, past, prefix)(q, k, v)
    assert ours.dtype == torch.float32
    assert worst_row(ours, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)) < worst
    for wrong in (seen ^ (j == i), seen ^ (j == 0)):  # what one key more or less does to every row
        wrong[:, 1] = True
        assert worst_row(ours, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=wrong)) > WORST_ROW


def worst_row(ours: Tensor, right: Tensor) -> float:
    return float(((ours - right).norm(dim=-1) / right.norm(dim=-1)).max())


def test_bfloat16_is_for_processors_that_multiply_it() -> None:
    assert has_bfloat16("flags\t\t: fpu avx512_vnni avx512_bf16 clzero")
    assert not has_bfloat16("flags\t\t: fpu avx2 avx512f avx512_vnni")
    assert not has_bfloat16("Features\t: fp asimd bf16")


@pytest.mark.parametrize("by_head_too", [True, False])
@pytest.mark.parametrize(("native", "pays"), [(True, True), (True, False), (False, True)])
def test_bfloat16_is_for_int8_and_for_layers_that_are_not_fine(
    native: bool, pays: bool, by_head_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_parts, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(torch_parts, "bfloat16_pays", lambda: pays)
    monkeypatch.setattr(torch_parts, "by_head_pays", lambda: by_head_too)
    monkeypatch.setattr(attention_module, "MANY", 2)
    tiny = tiny_config()
    config = replace(tiny, vision=replace(tiny.vision, layers=11))
    write_tensors(tmp_path, config, random_tensors(config, 0))
    for int8 in (False, True):
        vision, text, _ = modules_of(Moondream(tmp_path, int8=int8))
        wanted = in_bfloat16 if int8 and native and pays else by_head if by_head_too else None
        assert text.way is wanted
        attentions = [m for m in vision.modules() if isinstance(m, VisionAttention)]
        assert [m.way for m in attentions] == 9 * [by_head if by_head_too else None] + 2 * [wanted]
        with torch.inference_mode():
            crops = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
            ours = vision.encode(crops)
            for attention in attentions:
                attention.way = None
            assert relative(ours, vision.encode(crops)) < 0.02


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_a_text_is_attended_to_in_bfloat16_behind_its_own_mask(
    tiny: Callable[..., Path], noise: PictureFactory, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = {}
    monkeypatch.setattr(attention_module, "MANY", 2)
    monkeypatch.setattr(torch_parts, "bfloat16_pays", lambda: True)
    for int8, native in ((False, False), (False, True), (True, False), (True, True)):
        monkeypatch.setattr(torch_parts, "multiplies_bfloat16", lambda native=native: native)
        model = Moondream(tiny(mask=mask), int8=int8)
        model.encode(noise(30, 30))
        with torch.inference_mode():
            logits[int8, native] = model._prompt([9, 20, 21]).logits
    assert torch.equal(logits[False, True], logits[False, False]), "float32 stays float32"
    assert 0 < relative(logits[True, True], logits[True, False]) < 0.05


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_a_picture_is_attended_to_head_by_head_as_by_torch(
    tiny: Callable[..., Path], noise: PictureFactory, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "MANY", 2)
    logits = []
    for pays in (True, False):
        monkeypatch.setattr(torch_parts, "by_head_pays", lambda pays=pays: pays)
        model = Moondream(tiny(mask=mask))
        vision, text, _ = modules_of(model)
        attentions = [m for m in vision.modules() if isinstance(m, VisionAttention)]
        assert {text.way, *(attention.way for attention in attentions)} == {by_head if pays else None}
        model.encode(noise(30, 30))
        with torch.inference_mode():
            logits.append(model._prompt([9, 20, 21]).logits)
    assert relative(*logits) < 1e-5
    assert not torch.equal(*logits), "these were two ways"


def test_only_many_positions_are_attended_to_head_by_head(
    half_billion: Path, noise: PictureFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_parts, "by_head_pays", lambda: True)
    model, asked = Moondream(half_billion, 800), []

    def noted(new: int, past: int, prefix: int) -> Attention:
        asked.append(new)
        return by_head(new, past, prefix)

    monkeypatch.setattr(model.text, "way", noted)
    with torch.inference_mode():
        model.encode(noise(512, 384))
        for prompt in ([198, 198, 16438, 8305, 25], [198, 198, 24334, 1159, 25]):
            model._prompt(prompt)
    assert asked == [734], "the picture and its first prompt, not the second one"


@pytest.mark.parametrize("native", [True, False])
def test_with_and_without_bfloat16_the_same_is_said(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_parts, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(torch_parts, "bfloat16_pays", lambda: native)
    monkeypatch.setattr(attention_module, "MANY", 2)
    picture, said = draw(random_scene(random.Random(3)), (512, 384)), []
    for model in (Moondream(MODEL_DIR), Moondream(MODEL_DIR, int8=True)):
        model.encode(picture)
        said.append(model.caption("normal", Sampling(max_tokens=64)).text)
    assert said[0] == said[1]


# -- keys and values in float16, as they are or widened


def test_one_position_is_answered_from_the_cache_as_it_is_kept_where_that_is_faster(
    half_billion: Path, noise: PictureFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[tuple[bool, bool], set[torch.dtype]] = {}
    logits: dict[bool, Tensor] = {}
    update = KVCache.update

    def noted(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        handed = update(cache, layer, k, v)
        read[as_kept, k.shape[2] > 1] = {part.dtype for part in handed}
        return handed

    monkeypatch.setattr(KVCache, "update", noted)
    for as_kept in (True, False):
        monkeypatch.setattr(moondream_model, "float16_pays", lambda as_kept=as_kept: as_kept)
        model = Moondream(half_billion, 800, int8=True)
        with torch.inference_mode():
            model.encode(noise(512, 384))
            model._prompt([198, 198, 16438, 8305, 25])
            logits[as_kept] = generate.prefill(model.text, model.cache, [317]).logits
    assert read == {
        (True, True): {torch.float32},
        (True, False): {torch.float16},
        (False, True): {torch.float32},
        (False, False): {torch.float32},
    }
    assert 0 < relative(logits[True], logits[False]) < 0.05, "some activation is rounded to another level"


def test_float32_reads_a_float16_cache_in_float32(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moondream_model, "float16_pays", lambda: True)
    cache = Moondream(tiny(), kv_dtype=torch.float16).cache
    one = torch.ones(1, cache._config.text.heads, 1, cache._config.text.head_dim)
    assert cache.update(0, one, one)[0].dtype == torch.float32


# -- which way is taken


@pytest.mark.parametrize(("way_s", "other_s", "pays"), [(0.8, 1.0, True), (1.0, 0.8, False), (0.9, 1.0, False)])
def test_a_way_is_taken_where_it_is_clearly_the_faster_one(
    way_s: float, other_s: float, pays: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=clock))
    assert trials._pays(lambda: clock.advance(way_s), lambda: clock.advance(other_s)) is pays


def test_what_was_tried_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 where it is ever tried; elsewhere it takes minutes."""
    tried = [trials.by_head_pays, trials.float16_pays, *([trials.bfloat16_pays] if multiplies_bfloat16() else [])]
    found = [pays() for pays in tried]
    monkeypatch.setattr(trials, "_taken_s", None)
    assert [pays() for pays in tried] == found


# -- what is said


def test_the_demo_says_the_same_in_int8() -> None:
    """Its weights were never in int8."""
    models, rng = (Moondream(MODEL_DIR), Moondream(MODEL_DIR, int8=True)), random.Random(17)
    same = 0
    for _ in range(SCENES):
        picture = draw(random_scene(rng), (512, 384))
        said = []
        for model in models:
            model.encode(picture)
            said.append(model.caption("short", Sampling(max_tokens=64)).text)
        same += said[0] == said[1]
    print(f"\nint8 and float32 of demo-shapes: {same} of {SCENES} captions are the same")
    assert same >= SAME_CAPTIONS * SCENES


@pytest.fixture(scope="module")
def published(half_billion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The 0.5B shape as it comes from an official file: floats that are int8 levels with one scale a matrix."""
    directory = tmp_path_factory.mktemp("published")
    tensors = load_file(half_billion / "model.safetensors")
    for name in [name for name, tensor in tensors.items() if tensor.dim() == 2 and name.endswith(".weight")]:
        levels, scale, zero = quantized(tensors[name].numpy())
        tensors[name] = ((torch.from_numpy(levels.T.copy()).float() - float(zero)) * float(scale)).contiguous()
    save_file(tensors, directory / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        os.link(half_billion / name, directory / name)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.timeout(900)  # the first one writes the model and loads it twice
@pytest.mark.parametrize("bits", [pytest.param(7, marks=X86), 8])
def test_published_weights_in_int8_lead_to_the_same_tokens(
    published: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights are the hard case: the best token leads the second by a fifth of the logits' spread.

    Every step is compared behind the same text, that of float32. With as many bits of activations as a processor has.
    """
    if bits == 7:
        monkeypatch.setattr(quantize, "seven_bits", lambda: True)
        monkeypatch.setattr(torch_parts, "multiplies_bfloat16", lambda: False)
    elif platform.machine() == "x86_64" and quantize.seven_bits():
        pytest.skip("this processor has 7")
    exact, int8 = Moondream(published), Moondream(published, int8=True)
    layers = [m for part in modules_of(int8) for m in part.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 27 * 4 + 3 + 24 * 4 + 1
    fine = sum(isinstance(layer, FineLinear) for layer in layers)
    assert fine == (1 + 2 * 4 + 7 * 2 + 2 + 2 * 2 if bits == 8 else 1 + 27 * 4 + 2 + 24 * 2)
    assert all(layer.lossless for layer in layers)
    equal, correlations, errors = 0, [], []
    for seed in range(PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((512, 384), Image.Resampling.BICUBIC)
        with torch.inference_mode():
            for model in (exact, int8):
                model.encode(picture)
            errors.append(relative(int8._image, exact._image))
            steps = [model._prompt([198, 198, 24334, 1159, 25]) for model in (exact, int8)]
            for _ in range(STEPS):
                right, ours = steps[0].logits, steps[1].logits
                correlations.append(float(torch.corrcoef(torch.stack([right, ours]))[0, 1]))
                token = int(right.argmax())
                equal += token == int(ours.argmax())
                steps = [generate.prefill(model.text, model.cache, [token]) for model in (exact, int8)]
    layers_off = [relative(ours, right) for ours, right in zip(int8.cache.filled(), exact.cache.filled(), strict=True)]
    print(
        f"\nimage embeddings: relative error {np.mean(errors):.4f}; keys and values by layer: {np.round(layers_off, 4)}"
    )
    print(f"logits: correlation {min(correlations):.4f} at least; {equal} of {PICTURES * STEPS} tokens are the same")
    assert min(correlations) >= CORRELATION
    assert equal >= SAME_TOKENS * PICTURES * STEPS


def relative(ours: Tensor | None, right: Tensor | None) -> float:
    assert ours is not None
    assert right is not None
    return float((ours - right).norm() / right.norm())


UNAVAILABLE = """
import json, platform, sys
platform.machine = lambda: "riscv64"
from pathlib import Path
from edge_daemon.errors import UnavailableError
from edge_daemon.moondream.model import Moondream
try:
    Moondream(Path(sys.argv[1]), int8=True)
except UnavailableError as error:
    print(json.dumps(str(error)))
"""


def test_a_processor_without_kernels_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", UNAVAILABLE, MODEL_DIR], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "precision int8: there are no kernels for riscv64; use float32"


def test_a_float16_cache_is_half_as_large_and_says_nearly_the_same(half_billion: Path, noise: PictureFactory) -> None:
    single, half = Moondream(half_billion, 800), Moondream(half_billion, 800, kv_dtype=torch.float16)
    layer_bytes = single.cache.size_bytes // single.config.text.layers
    assert half.cache.size_bytes == single.cache.size_bytes // 2 + layer_bytes, "and the one that is widened"
    logits = []
    with torch.inference_mode():
        for model in (single, half):
            model.encode(noise(512, 384))
            model._prompt([198, 198, 16438, 8305, 25])
            logits.append(generate.prefill(model.text, model.cache, [317]).logits)
    assert relative(logits[1], logits[0]) < 0.01
    assert not torch.equal(*logits)
