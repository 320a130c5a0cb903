"""Weights: mapped and not copied, read when first needed, and every misfit named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from edge_daemon.errors import CaptionError, ModelError
from edge_daemon.moondream.config import Cropping, ModelConfig
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.linear import PackedLinear
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.weights import Weights
from edge_daemon.units import MIB
from tests.model.checkpoints import (
    HALF_BILLION,
    modules_of,
    random_tensors,
    text_of,
    tiny_config,
    tokenizer,
    write_model,
    write_tensors,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]


# -- one copy of everything large

MEASURE_LOADING = """
import json, re, sys
from pathlib import Path
import torch
from edge_daemon.moondream.model import Moondream

def memory(path):
    status = Path("/proc/self/status").read_text()
    found = {key: int(re.search(key + r":\\s+(\\d+)", status)[1]) for key in ("RssAnon", "VmRSS", "VmHWM")}
    found["mapped"] = 0
    mapping = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapping = line.endswith(path)
        elif mapping and line.startswith("Rss:"):
            found["mapped"] += int(line.split()[1])
    return {key: value * 1024 for key, value in found.items()}

directory, int8 = Path(sys.argv[1]), sys.argv[2] == "int8"
path = str(directory / "model.safetensors")
model = Moondream(directory, kv_positions=740, int8=int8)
measured = {"opened": memory(path)}
for name in ("vision", "text", "region"):
    getattr(model, name)
    measured[name] = memory(path)
model.release_vision()
measured["released"] = memory(path)
print(json.dumps(measured))
"""


@pytest.mark.parametrize(("precision", "share"), [("float32", 1.0), ("int8", 0.25)])
def test_half_a_billion_is_packed_layer_by_layer_and_never_there_twice(
    half_billion: Path, precision: str, share: float
) -> None:
    """Kernels have the linear layers in an order of their own; the mapped pages are given back as they are packed."""
    command = [sys.executable, "-c", MEASURE_LOADING, str(half_billion), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    sizes = load_sizes(half_billion)
    embeddings = HALF_BILLION.text.vocab * HALF_BILLION.text.dim * 4
    most = {"vision": sizes["vision"], "text": sizes["text"] - embeddings}
    largest = HALF_BILLION.text.vocab * HALF_BILLION.text.dim * 4
    before = measured["opened"]
    assert before["mapped"] < 8 * MIB
    for name, size_bytes in most.items():
        grown = measured[name]["RssAnon"] - before["RssAnon"]
        # kernels pad a width of 720
        most_bytes = share * size_bytes * (1.3 if precision == "int8" else 1.0) + 112 * MIB
        assert share * size_bytes - 48 * MIB < grown < most_bytes, name
        assert measured[name]["mapped"] < 48 * MIB, "the file's own pages were given back"
        assert measured[name]["VmHWM"] < max(before["VmHWM"], measured[name]["VmRSS"]) + 2 * largest
        before = measured[name]
    assert measured["region"]["RssAnon"] - before["RssAnon"] < 8 * MIB, "the region head stays mapped"
    given = measured["region"]["RssAnon"] - measured["released"]["RssAnon"]
    assert given > 0.9 * share * sizes["vision"]


def load_sizes(directory: Path) -> dict[str, int]:
    """Bytes of each part by the file's header."""
    with Weights(directory) as weights:
        sizes = dict.fromkeys(("vision", "text", "region"), 0)
        for name in weights.names:
            sizes[name.partition(".")[0]] += weights.tensor(name).numel() * 4
    return sizes


def test_all_but_packed_matrices_lies_in_the_mapped_file(tiny: TinyFactory) -> None:
    directory = tiny()
    model = Moondream(directory)
    parameters = [p for part in modules_of(model) for p in part.parameters()]
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(directory / "model.safetensors")):
            begin, end = line.split()[0].split("-")
            mapped.append(range(int(begin, 16), int(end, 16)))
    packed = [m for part in modules_of(model) for m in part.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 2 * 4 + 1 + 2 + 3 * 4 + 1
    assert len(parameters) + len(packed) == len(load_file(directory / "model.safetensors"))
    assert all(any(p.data_ptr() in addresses for addresses in mapped) for p in parameters)


def test_writing_to_a_parameter_does_not_reach_the_file(tiny: TinyFactory) -> None:
    directory = tiny()
    before = (directory / "model.safetensors").read_bytes()
    text_of(Moondream(directory)).lm_head.bias.add_(100)
    assert (directory / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(tmp_path: Path, noise: PictureFactory, dtype: torch.dtype) -> None:
    config = tiny_config(bos_state="stored")
    full = {name: tensor.to(dtype) for name, tensor in random_tensors(config, 4).items()}
    write_tensors(tmp_path / "half", config, full)
    write_tensors(tmp_path / "full", config, {name: tensor.float() for name, tensor in full.items()})
    half, single = Moondream(tmp_path / "half"), Moondream(tmp_path / "full")
    for part in ("vision", "text", "region"):
        state, wanted = getattr(half, part).state_dict(), getattr(single, part).state_dict()
        assert all(tensor.dtype == torch.float32 and torch.equal(tensor, wanted[n]) for n, tensor in state.items())
    for model in (half, single):
        model.encode(noise(30, 30))
    sampling = Sampling(max_tokens=8)
    assert half.caption("short", sampling).text == single.caption("short", sampling).text


# -- read when first needed


def test_parts_are_read_when_first_needed(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    assert not {"vision", "text", "region"} & vars(model).keys()
    model.encode(noise(30, 30))
    model.caption("short", Sampling(max_tokens=3))
    assert {"vision", "text"} == {"vision", "text", "region"} & vars(model).keys()
    model.detect("star")
    assert "region" in vars(model)


def test_load_reads_what_every_caption_needs(tiny: TinyFactory) -> None:
    model = Moondream(tiny())
    model.load()
    assert {"vision", "text"} == {"vision", "text", "region"} & vars(model).keys()


def test_a_damaged_region_head_does_not_keep_from_captioning(tmp_path: Path, noise: PictureFactory) -> None:
    config = tiny_config()
    tensors = random_tensors(config, 1)
    del tensors["region.coord_encoder.bias"]
    write_tensors(tmp_path, config, tensors)
    model = Moondream(tmp_path)
    model.encode(noise(30, 30))
    assert model.caption("short", Sampling(max_tokens=3)).tokens
    with pytest.raises(ModelError, match=r"missing tensor region\.coord_encoder\.bias"):
        model.detect("star")


# -- misfits


def misfit(tmp_path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> str:
    """The error of loading such a directory."""
    write_tensors(tmp_path, config, tensors)
    with pytest.raises(ModelError) as caught:
        Moondream(tmp_path).load()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model.safetensors'} does not fit its config.json:")
    return message


def test_all_misfits_are_named_in_one_error(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = random_tensors(config, 1)
    del tensors["text.blocks.0.ln.bias"], tensors["text.wte"]
    tensors["text.blocks.3.ln.bias"] = torch.zeros(32)
    tensors["text.lm_head.weight"] = torch.zeros(97, 32)
    tensors["text.post_ln.weight"] = torch.zeros(32, dtype=torch.int8)
    assert misfit(tmp_path, config, tensors).splitlines()[1:] == [
        "  missing tensor text.blocks.0.ln.bias (32,)",
        "  missing tensor text.wte (96, 32)",
        "  unexpected tensor text.blocks.3.ln.bias",
        "  text.lm_head.weight has shape (97, 32), config.json says (96, 32)",
        "  text.post_ln.weight has dtype I8, which is not one of F32, F16, BF16",
    ]


def test_tensors_of_no_part_are_named(tmp_path: Path) -> None:
    config = replace(tiny_config(), region=None)
    tensors = random_tensors(tiny_config(), 1)
    tensors |= {"model.text.wte": torch.zeros(1), "lora": torch.zeros(1)}
    lines = misfit(tmp_path, config, tensors).splitlines()[1:]
    assert lines[:2] == ["  unexpected tensor lora", "  unexpected tensor model.text.wte"]
    assert len(lines) == 2 + 14  # and the region head, of which the config says nothing
    assert all(line.startswith("  unexpected tensor region.") for line in lines[2:])


@pytest.mark.parametrize("bos_state", ["stored", "computed"])
def test_the_stored_bos_is_there_exactly_when_the_config_says_so(tmp_path: Path, bos_state: str) -> None:
    stored, computed = tiny_config(bos_state="stored"), tiny_config()
    if bos_state == "stored":
        message = misfit(tmp_path, stored, random_tensors(computed, 1))
        assert f"missing tensor {BOS_KV} (3, 2, 4, 1, 8)" in message
    else:
        message = misfit(tmp_path, computed, random_tensors(stored, 1))
        assert f"unexpected tensor {BOS_KV}" in message


def test_a_misshapen_bos_is_not_stretched(tmp_path: Path) -> None:
    config = tiny_config(bos_state="stored")
    tensors = random_tensors(config, 1)
    tensors[BOS_KV] = torch.zeros(1, 2, 4, 1, 8)
    assert f"{BOS_KV} has shape (1, 2, 4, 1, 8), config.json says (3, 2, 4, 1, 8)" in misfit(tmp_path, config, tensors)


def test_a_model_without_region_head_says_so(tmp_path: Path, noise: PictureFactory) -> None:
    config = replace(tiny_config(), region=None)
    model = Moondream(write_model(tmp_path, config))
    model.encode(noise(30, 30))
    for find in (model.detect, model.point):
        with pytest.raises(CaptionError, match="no region head"):
            find("star")


# -- files


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: b"PK\x03\x04" + data,
    ],
    ids=["a byte less", "half", "no header", "4 bytes", "empty", "a byte more", "length", "header", "a zip"],
)
def test_a_damaged_file_is_refused(tiny: TinyFactory, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny(), directory)
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match="not a usable safetensors file") as caught:
        Moondream(directory)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny(), directory)
    (directory / name).unlink()
    with pytest.raises(ModelError, match=r"(?i)no such file") as caught:
        Moondream(directory)
    assert str(directory / name) in str(caught.value)


def test_a_tensor_that_is_not_there_is_named(tiny: TinyFactory) -> None:
    with Weights(tiny()) as weights, pytest.raises(ModelError, match=r"model\.safetensors: missing tensor text\.nix"):
        weights.tensor("text.nix")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "Nothing"}}'])
def test_a_damaged_tokenizer_is_refused(tiny: TinyFactory, tmp_path: Path, content: str) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny(), directory)
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        Moondream(directory)
    assert str(caught.value).startswith(f"{directory / 'tokenizer.json'}: ")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tiny: TinyFactory, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny(), directory)
    large = tokenizer()
    large.add_tokens([f"word{n}" for n in range(10)])
    large.save(str(directory / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json has tokens up to number 100, .*vocab of 96"):
        Moondream(directory)


# -- the estimate that the KV cap is computed from

MEASURE_WORK_SPACE = """
import json, re, sys
from pathlib import Path
import torch
from PIL import Image
from edge_daemon.moondream.model import Moondream

def kib(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

model = Moondream(Path(sys.argv[1]), kv_positions=800)
for part in (model.vision, model.text):
    for parameter in part.parameters():
        parameter.sum().item()
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model.encode(Image.effect_noise((1000, 1000), 90).convert("RGB"))
print(json.dumps({"taken": (kib("VmHWM") - before) * 1024, "estimate": model.config.vision_activation_bytes}))
"""


@pytest.mark.parametrize("cropping", ["template", "overlap"])
def test_work_space_stays_below_its_estimate(tmp_path: Path, cropping: Cropping) -> None:
    """In the 0.5B's widths with one layer each: layers follow one another and use the same memory."""
    config = replace(
        HALF_BILLION,
        vision=replace(HALF_BILLION.vision, layers=1),
        text=replace(HALF_BILLION.text, layers=1, vocab=96),
        region=None,
        cropping=cropping,
        tokens=tiny_config().tokens,
        templates=tiny_config().templates,
    )
    write_model(tmp_path, config)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_WORK_SPACE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    shutil.rmtree(tmp_path)
    assert 0.1 * measured["estimate"] < measured["taken"] < measured["estimate"], measured
