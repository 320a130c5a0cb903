"""config.json: shapes follow from it, and whatever is wrong in it is named by file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edge_daemon.errors import ModelError
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision
from tests.model.checkpoints import HALF_BILLION, TWO_BILLION, tiny_config

Change = Callable[[dict[str, Any]], object]


def write(directory: Path, change: Change, config: ModelConfig | None = None) -> Path:
    """A config.json with one thing changed."""
    data = json.loads((config or tiny_config()).to_json())
    change(data)
    path = directory / "config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "config",
    [
        HALF_BILLION,
        TWO_BILLION,
        tiny_config(),
        replace(tiny_config("overlap", "prefix", "stored", "log2"), note="nur Kreise – ehrlich", region=None),
        replace(tiny_config(), provenance={"file": "a.mf.gz", "sha256": "0" * 64, "parts": [1, None, True]}),
    ],
    ids=lambda config: str(config.name),
)
def test_a_config_survives_the_file(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert load_config(tmp_path) == config


def test_what_has_a_default_may_be_left_out(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["note"], data["provenance"], data["format"], data["tokens"]["answer"], data["templates"]["point"]

    write(tmp_path, change)
    config = load_config(tmp_path)
    assert (config.note, config.provenance, config.format) == ("", {}, 1)
    assert config.tokens.answer is None
    assert config.templates.point is None


# -- what is wrong, and the words that must be in the error

WRONG: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (lambda c: c.update(layer=3), ["unknown key 'layer'"]),
    "unknown key inside": (lambda c: c["vision"].update(depth=3), ["vision:", "unknown key 'depth'"]),
    "missing key": (lambda c: c.pop("mask"), ["missing key 'mask'"]),
    "missing key inside": (lambda c: c["text"].pop("rotary_dim"), ["text:", "missing key 'rotary_dim'"]),
    "misspelt key": (
        lambda c: c["text"].update(head=c["text"].pop("heads")),
        ["unknown key 'head'", "missing key 'heads'"],
    ),
    "a text for a number": (lambda c: c["vision"].update(dim="24"), ["vision: dim", "'24'", "int"]),
    "a fraction": (lambda c: c["vision"].update(layers=2.0), ["vision: layers", "2.0", "int"]),
    "true for a number": (lambda c: c["text"].update(layers=True), ["text: layers", "True"]),
    "null for a number": (lambda c: c["text"].update(layers=None), ["text: layers", "None"]),
    "null for a part": (lambda c: c.update(vision=None), ["vision", "object", "None"]),
    "a list for a part": (lambda c: c.update(text=[]), ["text", "object", "[]"]),
    "null for a dictionary": (lambda c: c.update(provenance=None), ["provenance", "None"]),
    "null for prompts": (lambda c: c["templates"].update(caption=None), ["templates: caption", "None"]),
    "a number for a name": (lambda c: c.update(name=5), ["name", "5", "str"]),
    "an unknown mask": (lambda c: c.update(mask="none"), ["mask", "'none'", "causal", "prefix"]),
    "an unknown cropping": (lambda c: c.update(cropping=["overlap"]), ["cropping", "['overlap']", "template"]),
    "an unknown scale": (
        lambda c: c["region"].update(size_scale="log"),
        ["region: size_scale", "'log'", "linear", "log2"],
    ),
    "a prompt of words": (
        lambda c: c["templates"]["caption"].update(short=["Short", 1]),
        ["templates: caption: short[0]", "'Short'"],
    ),
    "a prompt that is none": (
        lambda c: c["templates"].update(query=[1, 2]),
        ["templates: query", "[1, 2]", "dict"],
    ),
    "a prompt without its suffix": (
        lambda c: c["templates"]["query"].pop("suffix"),
        ["templates: query", "prefix and suffix", "['prefix']"],
    ),
    "an empty prompt": (lambda c: c["templates"]["caption"].update(short=[]), ["caption: short", "empty"]),
    "a prompt outside the vocabulary": (
        lambda c: c["templates"]["detect"].update(prefix=[5, 96]),
        ["templates: detect", "[96]", "vocab of 96"],
    ),
    "a special token outside the vocabulary": (lambda c: c["tokens"].update(bos=-1), ["tokens: bos", "[-1]"]),
    "no layers": (lambda c: c["text"].update(layers=0), ["text: layers 0", "not from 1 to 4194304"]),
    "too wide for any machine": (lambda c: c["text"].update(dim=10**9), ["text: dim 1000000000", "not from 1 to"]),
    "no heads": (lambda c: c["vision"].update(heads=0), ["vision: heads 0", "not from 1 to 4194304"]),
    "less than no bins": (
        lambda c: c["region"].update(coord_bins=-4),
        ["region: coord_bins -4", "not from 1 to 4194304"],
    ),
    "half a patch": (lambda c: c["vision"].update(crop_px=31), ["crop_px 31", "patch_px 3"]),
    "uneven vision heads": (lambda c: c["vision"].update(heads=5), ["vision: dim 24", "heads 5"]),
    "uneven text heads": (lambda c: c["text"].update(heads=5), ["text: dim 32", "heads 5"]),
    "odd rotation": (lambda c: c["text"].update(rotary_dim=3), ["rotary_dim 3"]),
    "too wide a rotation": (lambda c: c["text"].update(rotary_dim=10), ["rotary_dim 10", "(8)"]),
    "too short a context": (lambda c: c["text"].update(max_context=101), ["max_context 101", "101 positions"]),
    "odd features": (lambda c: c["region"].update(size_features=11), ["region: size_features 11", "odd"]),
    "nothing between margins": (
        lambda c: (c.update(cropping="overlap"), c["vision"].update(crop_px=24)),
        ["8 patches", "margins of 4"],
    ),
    "a newer format": (lambda c: c.update(format=2, new_key=1), ["format 2", "newer", "(1)"]),
    "a format in words": (lambda c: c.update(format="1"), ["format", "'1'", "int"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, name: str) -> None:
    change, words = WRONG[name]
    path = write(tmp_path, change)
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert [word for word in words if word not in message] == [], message


def test_all_impossible_sizes_are_named_at_once(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["vision"]["crop_px"] = 31
        data["text"]["heads"] = 5
        data["tokens"]["eos"] = 100

    write(tmp_path, change)
    with pytest.raises(ModelError, match=r"crop_px 31.*heads 5.*tokens: eos"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "object"),
        (b"null", "object"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=word) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: No such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="Is a directory"):
        load_config(tmp_path)


# -- the published shapes, on the meta device


def parts_of(config: ModelConfig) -> dict[str, nn.Module]:
    assert config.region is not None
    with torch.device("meta"):
        return {
            "vision": Vision(config.vision, config.text.dim),
            "text": Text(config.text),
            "region": Region(config.region, config.text.dim),
        }


def millions(parts: dict[str, nn.Module], prefix: str = "", matrices_only: bool = False) -> float:
    """Parameters whose names begin like this, in millions."""
    named = [(f"{part}.{name}", p) for part, module in parts.items() for name, p in module.named_parameters()]
    chosen = [p for name, p in named if name.startswith(prefix) and (p.dim() == 2 or not matrices_only)]
    return sum(p.numel() for p in chosen) / 1e6


def test_half_a_billion_has_the_published_number_of_parameters() -> None:
    """Matrices that one caption reads: vision 161 M, projection 20 M, decoder 302 M, head 52 M."""
    parts = parts_of(HALF_BILLION)
    matrices = {
        prefix: round(millions(parts, prefix, matrices_only=True))
        for prefix in ("vision.blocks", "vision.patch_emb", "vision.proj_mlp", "text.blocks", "text.lm_head")
    }
    assert matrices == {
        "vision.blocks": 161,
        "vision.patch_emb": 0,
        "vision.proj_mlp": 20,
        "text.blocks": 302,
        "text.lm_head": 52,
    }
    assert millions(parts, "text.wte") == 51200 * 1024 / 1e6
    assert millions(parts) == pytest.approx(631.889, abs=0.001)


def test_two_billion_has_the_published_number_of_parameters() -> None:
    """It is nearer to 1.9 billion."""
    assert millions(parts_of(TWO_BILLION)) == pytest.approx(1927, abs=1)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (
            HALF_BILLION,
            {
                "vision.patch_emb.weight": (720, 588),
                "vision.pos_emb": (1, 729, 720),
                "vision.blocks.26.attn.qkv.weight": (2160, 720),
                "vision.blocks.26.mlp.fc1.weight": (2690, 720),
                "vision.post_ln.weight": (720,),
                "vision.proj_mlp.fc1.weight": (8192, 1440),
                "vision.proj_mlp.fc2.weight": (1024, 8192),
                "text.wte": (51200, 1024),
                "text.blocks.23.ln.weight": (1024,),
                "text.blocks.23.attn.qkv.weight": (3072, 1024),
                "text.blocks.23.attn.proj.bias": (1024,),
                "text.blocks.23.mlp.fc2.weight": (1024, 4096),
                "text.lm_head.weight": (51200, 1024),
                "region.coord_features": (1, 128),
                "region.coord_decoder.fc2.weight": (1024, 8192),
                "region.size_features": (2, 256),
                "region.size_encoder.weight": (1024, 512),
                "region.size_decoder.fc2.weight": (2048, 8192),
            },
        ),
        (
            TWO_BILLION,
            {
                "vision.patch_emb.weight": (1152, 588),
                "vision.blocks.26.attn.qkv.weight": (3456, 1152),
                "vision.proj_mlp.fc1.weight": (8192, 2304),
                "vision.proj_mlp.fc2.weight": (2048, 8192),
                "text.blocks.23.attn.qkv.weight": (6144, 2048),
                "text.blocks.23.mlp.fc1.weight": (8192, 2048),
                "text.lm_head.bias": (51200,),
                "region.size_decoder.fc1.weight": (8192, 2048),
            },
        ),
    ],
    ids=["0.5B", "2B"],
)
def test_published_tensors_have_their_names_and_shapes(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {f"{part}.{n}": tuple(t.shape) for part, m in parts_of(config).items() for n, t in m.state_dict().items()}
    assert {name: found.get(name) for name in shapes} == shapes
    assert not any(name.startswith(("vision.blocks.27", "text.blocks.24")) for name in found)


def test_derived_sizes_are_the_published_ones() -> None:
    assert HALF_BILLION.prefix_positions == TWO_BILLION.prefix_positions == 730
    assert (HALF_BILLION.vision.grid, HALF_BILLION.vision.patches) == (27, 729)
    assert HALF_BILLION.text.head_dim == TWO_BILLION.text.head_dim == 64
    assert HALF_BILLION.kv_values_per_position == 49_152
    assert TWO_BILLION.kv_values_per_position == 2 * 49_152
