"""`edge-daemon bench`: its arithmetic against the published totals and against what torch counts, and the command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edge_daemon.bench import arithmetic, machine, report
from edge_daemon.bench.limits import limit
from edge_daemon.bench.random_model import SHAPES, write_random
from edge_daemon.bench.stages import Run, caption
from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.scenes import draw, random_scene
from edge_daemon.exit_codes import UNAVAILABLE, USAGE
from edge_daemon.moondream import generate
from edge_daemon.moondream.config import Mask, ModelConfig
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.threads import automatic, cores_here
from tests.model.checkpoints import HALF_BILLION, modules_of, tiny_config
from tests.model.onnx_models import as_graphs

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]
G, M = 1e9, 1e6
STAGES = {"decode", "vision", "projection", "prefill", "first_token", "token", "total"}
KEYS = {
    *("schema", "edge_daemon", "python", "torch", "machine", "threads", "model", "precision", "runs", "crops"),
    *("prompt_tokens", "tokens", "limits", "stages", "of_the_limits", "load_s", "peak_rss_bytes"),
    *("kv_positions", "kv_bytes"),
}


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real program."""
    argv = [sys.executable, "-m", "edge_daemon", "bench", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ | environment, check=False)


# ---- the arithmetic -------------------------------------------------------------------------------------


def test_it_agrees_with_the_published_totals_of_the_half_billion() -> None:
    """Totals of one crop, 730 positions of which all are asked for, and one token; attention of a full square there."""
    vision, projection = arithmetic.vision(HALF_BILLION), arithmetic.projection(HALF_BILLION)
    assert (vision.linear_flops / G, vision.attention_flops / G) == pytest.approx((234, 41), abs=0.9)
    assert (vision.weights / M, projection.weights / M) == pytest.approx((161, 20), abs=0.6)
    assert projection.flops / G == pytest.approx(29, abs=0.6)
    whole = arithmetic.decoder(HALF_BILLION, 0, 730, asked=730)
    assert whole.linear_flops / G == pytest.approx(441, abs=0.6)
    assert whole.attention_flops / G == pytest.approx(52 / 2, abs=0.6), "causal attention is half of the square"
    assert whole.weights / M == pytest.approx(302, abs=0.6)
    token = arithmetic.token(HALF_BILLION, 735)
    assert token.linear_flops / G == pytest.approx(0.7, abs=0.05)
    assert token.weights / M == pytest.approx(354, abs=0.6)
    assert token.bytes(4, 196_608) == token.weights * 4 + 736 * 196_608


def test_of_the_last_block_only_what_is_asked_for_counts() -> None:
    text = HALF_BILLION.text
    whole = arithmetic.decoder(HALF_BILLION, 1, 734, asked=734)
    last = arithmetic.decoder(HALF_BILLION, 1, 734)
    saved = 733 * (2 * text.dim**2 + 2 * text.dim * text.ff_dim)  # queries, output and MLP of all but one
    assert whole.linear_flops - last.linear_flops == 2 * saved
    assert arithmetic.decoder(HALF_BILLION, 9, 1, asked=1) == arithmetic.decoder(HALF_BILLION, 9, 1)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_pairs_are_those_of_the_mask(mask: Mask) -> None:
    """Counted in the mask itself, as the parity tests have it: position i sees j ≤ i, and the prefix sees itself."""
    config = tiny_config(mask=mask)
    prefix = config.prefix_positions if mask == "prefix" else 0
    past, new = 40, config.prefix_positions
    i, j = torch.arange(past, past + new)[:, None], torch.arange(past + new)
    seen = (j <= i) | ((i < prefix) & (j < prefix))
    per_pair = 4 * config.text.dim
    work = arithmetic.decoder(config, past, new, asked=new)
    assert work.attention_flops == per_pair * config.text.layers * int(seen.sum())


def counted(call: Callable[[], object]) -> dict[str, int]:
    """Operations by kind, as torch counts them: `linear` (aten.mm, addmm) and `attention` (all that has heads)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    found = {"linear": 0, "attention": 0}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        found["linear" if str(operation) in ("aten.mm", "aten.addmm") else "attention"] += flops
    return found


@pytest.fixture
def counting(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> Moondream:
    """A tiny model whose attention is written out in products that torch can count; float64, so no packed kernels."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = torch.matmul(q, k.mT) / q.shape[-1] ** 0.5
        scores = scores if attn_mask is None else scores.masked_fill(~attn_mask, float("-inf"))
        return torch.matmul(scores.softmax(-1), v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return Moondream(tiny("template", "causal", "stored"), dtype=torch.float64)


def test_it_agrees_with_what_torch_counts(counting: Moondream) -> None:
    config = counting.config
    vision, text, _ = modules_of(counting)
    size_px, patches = config.vision.crop_px, config.vision.patches
    for crops in (1, 3):
        pixels = torch.rand(crops, 3, size_px, size_px).double()
        seen = counted(partial(vision.encode, pixels))
        wanted = arithmetic.vision(config, crops)
        assert (seen["linear"], seen["attention"]) == (wanted.linear_flops, wanted.attention_flops)
    features = torch.rand(patches, config.vision.dim).double()
    assert counted(lambda: vision.project(features, features)) == {
        "linear": arithmetic.projection(config).flops,
        "attention": 0,
    }
    past = config.prefix_positions
    counting.cache.append(torch.rand(config.text.layers, 2, config.text.heads, past, config.text.head_dim).double())
    seen = counted(lambda: generate.prefill(text, counting.cache, [9]).logits)
    wanted = arithmetic.token(config, past)
    turned = seen["linear"] - wanted.linear_flops  # nothing but rotations may be beside it
    assert 0 <= turned <= 0.02 * wanted.linear_flops
    assert seen["attention"] >= wanted.attention_flops


def test_a_prefill_computes_the_queries_of_the_last_block_too_and_nothing_else_more(counting: Moondream) -> None:
    config = counting.config
    embeddings = torch.rand(1, config.prefix_positions + 2, config.text.dim).double()
    _, text, _ = modules_of(counting)
    cache = KVCache(config, 150, dtype=torch.float64)
    cache.append(torch.rand(config.text.layers, 2, config.text.heads, 1, config.text.head_dim).double())
    seen = counted(lambda: text.extend(cache, embeddings))
    wanted = arithmetic.decoder(config, 1, embeddings.shape[1])
    assert seen["linear"] == wanted.linear_flops + 2 * (embeddings.shape[1] - 1) * config.text.dim**2


# ---- limits, tables -------------------------------------------------------------------------------------


def test_a_limit_is_the_best_with_the_spread_of_what_gave_it() -> None:
    found = limit({"mm": [3.0, 9.0, 5.0], "packed": [8.0]}, {"mm": [7.0, 8.0], "packed": [8.5]})
    assert (found.best, found.by, found.median, found.least) == (9.0, "mm", 7.0, 3.0)


def test_the_peak_begins_anew() -> None:
    block = torch.ones(64 << 20)
    high_bytes = machine.peak_rss_bytes()
    del block
    assert machine.forget_peak()
    assert machine.peak_rss_bytes() < high_bytes - (200 << 20)


# ---- the stages -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says its end token for ever: a head of zeros with one large bias."""
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("looping")
    config = tiny_config(bos_state="stored")
    write_random(directory, config)
    tensors = load_file(directory / "model.safetensors")
    tensors["text.lm_head.weight"] = torch.zeros_like(tensors["text.lm_head.weight"])
    tensors["text.lm_head.bias"] = torch.zeros_like(tensors["text.lm_head.bias"])
    tensors["text.lm_head.bias"][config.tokens.eos] = 9
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_neither_end_tokens_nor_circles_end_a_run(looping: Path, noise: PictureFactory) -> None:
    model = Moondream(looping)
    run = caption(model, noise(30, 30), "short", 40)
    assert [token.id for token in run.tokens] == [model.config.tokens.eos] * 40
    assert run.crops == 1
    assert run.total_s == pytest.approx(run.vision_s + run.projection_s + run.prefill_s + sum(_seconds(run)))
    assert min(run.vision_s, run.projection_s, run.prefill_s, *_seconds(run)) > 0


def _seconds(run: Run) -> Iterator[float]:
    return (token.seconds for token in run.tokens)


def test_it_says_what_a_caption_says() -> None:
    """With a model that ends its captions: up to there the tokens are the same, and it goes on."""
    model, said = Moondream(MODEL_DIR), list[int]()
    picture = draw(random_scene(random.Random(4)), (512, 384))
    model.encode(picture)
    assert model.caption("short", generate.Sampling(), said.append).finish_reason == "eos"
    run = caption(model, picture, "short", len(said) + 3)
    assert [token.id for token in run.tokens[: len(said) + 1]] == [*said, model.config.tokens.eos]
    assert len(run.tokens) == len(said) + 3


def test_graphs_are_timed_as_well(tmp_path: Path) -> None:
    """A directory with `engine: onnx`, whose parts are others."""
    model = Moondream(as_graphs(MODEL_DIR, tmp_path / "graphs", "int8"))
    run = caption(model, draw(random_scene(random.Random(4)), (512, 384)), "short", 4)
    assert len(run.tokens) == 4
    assert min(run.vision_s, run.projection_s, run.prefill_s, *_seconds(run)) > 0
    assert model.parts.precision in arithmetic.WEIGHT_BYTES


# ---- the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    return bench("--model", "demo-shapes", "--runs", "2", "--tokens", "3", "--threads", "1")


def numbers(document: Any) -> Iterator[float]:
    """Every number in it."""
    if isinstance(document, dict | list):
        for value in document.values() if isinstance(document, dict) else document:
            yield from numbers(value)
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield document


def test_the_command_prints_a_table_and_a_document(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    said = json.loads(last)
    assert set(said) == KEYS
    assert set(said["stages"]) == STAGES
    assert all(number > 0 for number in numbers(said))
    assert (said["schema"], said["threads"], said["runs"], said["tokens"], said["precision"]) == (1, 1, 2, 3, "float32")
    assert said["model"] == {
        "name": "demo-shapes",
        "engine": "torch",
        "directory": str(MODEL_DIR),
        "random_weights": False,
    }
    words = "\n".join(lines)
    assert all(word in words for word in (*report.NAMES.values(), "GFLOP/s", "GB/s", "MiB resident", "demo-shapes"))
    assert "picture 2 of 2" in done.stderr


def test_its_numbers_fit_each_other(done: subprocess.CompletedProcess[str]) -> None:
    said = json.loads(done.stdout.splitlines()[-1])
    stages, config = said["stages"], Moondream(MODEL_DIR).config
    for stage in stages.values():
        assert stage["least_s"] <= stage["median_s"] <= stage["most_s"]
    for name in STAGES - {"decode"}:
        stage = stages[name]
        assert stage["gflops"] == pytest.approx(stage["flops"] * 1e-9 / stage["median_s"], rel=0.02, abs=1e-4)
        assert stage["gbps"] == pytest.approx(stage["bytes"] * 1e-9 / stage["median_s"], rel=0.02, abs=1e-4)
    assert stages["vision"]["flops"] == arithmetic.vision(config).flops
    assert stages["total"]["most_s"] >= stages["vision"]["least_s"] + stages["prefill"]["least_s"]
    assert said["kv_positions"] == config.prefix_positions + said["prompt_tokens"] + said["tokens"]
    assert said["kv_bytes"] == said["kv_positions"] * config.kv_values_per_position * 4
    for bounds in said["limits"].values():
        assert bounds["least"] <= bounds["median"] <= bounds["best"] == max(bounds["before"], bounds["after"])
    token = stages["token"]["gbps"] / said["limits"]["read_gbps"]["best"]
    shares = said["of_the_limits"]
    assert shares["token"] == pytest.approx(token, rel=0.02, abs=1e-4)
    assert shares["token"] <= shares["token_best"]
    assert shares["vision_and_prefill"] <= shares["vision_and_prefill_best"]


def test_json_alone_is_one_line_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torch would take
    done = bench("--model", str(MODEL_DIR), "--runs", "1", "--tokens", "2", "--precision", "int8", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert said["precision"] == "int8"
    assert said["threads"] == automatic(cores_here())[0], "what the service would take"


def test_of_graphs_no_work_is_made_up(tmp_path: Path) -> None:
    """Their configuration says nothing of what lies inside of them."""
    done = bench("--model", str(as_graphs(MODEL_DIR, tmp_path / "graphs", "int8")), "--runs", "1", "--tokens", "2")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["stages"].keys() == report.NAMES.keys()
    assert all(stage.keys() == {"median_s", "least_s", "most_s"} for stage in said["stages"].values())
    assert said["of_the_limits"] == {}
    assert "how much computing the graphs of engine onnx take is not known" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "0"], "argument --runs: '0' is not a whole number of 1 or more"),
        (["--runs", "-1"], "argument --runs: '-1' is not a whole number of 1 or more"),
        (["--tokens", "1"], "argument --tokens: '1' is not a whole number of 2 or more"),
        (["--tokens", "many"], "argument --tokens: 'many' is not a whole number of 2 or more"),
        (["--threads", "0.5"], "argument --threads: '0.5' is not a whole number of 1 or more"),
        (["--precision", "int3"], "invalid choice: 'int3'"),
        (["--shape", "7b"], "invalid choice: '7b'"),
        (["--shape", "0.5b", "--model", "demo-shapes"], "not allowed with argument"),
    ],
)
def test_bad_arguments_are_wrong_usage(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--tokens", "5000"],
            "--tokens 5000: demo-shapes has 512 positions, of which picture and prompt take 85",
        ),
        (["--threads", "4096"], "--threads 4096: this process may use "),
    ],
)
def test_more_than_there_is_is_refused_before_anything_is_measured(arguments: list[str], words: str) -> None:
    done = bench("--model", "demo-shapes", *arguments)
    assert done.returncode not in (0, 1)
    assert done.stdout == ""
    assert done.stderr.startswith(f"edge-daemon: {words}")


def test_an_unknown_model_is_told_with_those_there_are(tmp_path: Path) -> None:
    done = bench("--model", "moondream-9b", EDGE_DAEMON_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    assert "models here: demo-shapes" in done.stderr


@pytest.mark.parametrize("arguments", [["--shape", "0.5b"], []])
def test_random_weights_need_room(arguments: list[str], tmp_path: Path) -> None:
    """/proc is a file system with no room at all, on every Linux."""
    done = bench(*arguments, TMPDIR="/proc", EDGE_DAEMON_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    assert "random weights in the shape of moondream-0.5b take 2.5 GB, and /proc has 0.0 GB free" in done.stderr
    assert "set TMPDIR to a directory with more room" in done.stderr
    assert "Traceback" not in done.stderr


# ---- random weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", [True, False])
def test_random_weights_are_a_whole_model(region: bool, tmp_path: Path, noise: PictureFactory) -> None:
    config = tiny_config(bos_state="stored")
    config = config if region else replace(config, region=None)
    shares: list[float] = []
    write_random(tmp_path, config, 3, lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    model = Moondream(tmp_path)
    assert model.config == config
    model.encode(noise(30, 30))
    assert model.caption("short", generate.Sampling(max_tokens=2)).tokens <= 2


def test_the_same_seed_makes_the_same_weights(tmp_path: Path) -> None:
    config: ModelConfig = tiny_config()
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        write_random(tmp_path / name, config, seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_published_shape_has_the_prompts_of_the_client() -> None:
    assert SHAPES["0.5b"].templates.caption["short"] == [198, 198, 16438, 8305, 25]
