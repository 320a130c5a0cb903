"""What a model takes of the memory, by headers: without torch, and without the file where only a shape is known."""

from __future__ import annotations

import json
import mmap
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_daemon import needs
from edge_daemon.demo import MODEL_DIR
from edge_daemon.memory import SMALLEST_ANSWER_POSITIONS, Budget
from edge_daemon.models.catalogue import HALF_BILLION, TWO_BILLION
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import (
    EMBEDDINGS,
    Footprint,
    Stored,
    footprint,
    footprint_of,
    tensors_in,
    tensors_of,
)
from edge_daemon.units import MIB

DEMO = load_config(MODEL_DIR)
SHAPES = pytest.mark.parametrize("config", [HALF_BILLION, TWO_BILLION, DEMO], ids=lambda config: config.name)


def weights_bytes(taken: Footprint) -> int:
    return taken.vision_bytes + taken.text_bytes + taken.region_bytes


WITHOUT_TORCH = """
import sys
from edge_daemon import needs
from edge_daemon.demo import MODEL_DIR
found = needs.installed(MODEL_DIR, "float32")
print(found.vision_bytes + found.text_bytes, *({"torch", "numpy"} & set(sys.modules)))
"""


def test_the_needs_of_a_directory_are_read_without_torch() -> None:
    """By the daemon's parent."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    file_bytes = (MODEL_DIR / "model.safetensors").stat().st_size
    assert 0.9 * file_bytes < int(done.stdout) < 1.1 * file_bytes
    found = needs.installed(MODEL_DIR, "auto")
    assert found.runtime_bytes == needs.RUNTIME_BYTES
    assert (found.prefix_positions, found.max_positions) == (82, 512)
    assert found == needs.installed(MODEL_DIR, "int8"), "what the worker takes where float32 does not fit"


def test_the_tensors_of_a_shape_are_those_of_the_file() -> None:
    assert tensors_of(DEMO) == tensors_in(MODEL_DIR / "model.safetensors")


@SHAPES
def test_float32_is_four_bytes_a_weight_but_for_the_word_embeddings(config: ModelConfig) -> None:
    tensors = tensors_of(config)
    taken = footprint_of(tensors, config)
    touched = min(tensors[EMBEDDINGS].values * 4, config.text.max_context * mmap.PAGESIZE)
    exact = 4 * sum(tensor.values for name, tensor in tensors.items() if name != EMBEDDINGS) + touched
    assert exact <= weights_bytes(taken) <= 1.06 * exact
    assert taken.bytes_per_position == config.kv_values_per_position * 4


@SHAPES
def test_int8_is_a_byte_a_weight(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    full, short = (footprint_of(tensors_of(config), config, precision) for precision in ("float32", "int8"))
    assert full.text_bytes / 4 < short.text_bytes < full.text_bytes / 3
    assert full.vision_bytes / 4 < short.vision_bytes < full.vision_bytes / 3
    assert short.region_bytes == full.region_bytes
    assert short.vision_activation_bytes == full.vision_activation_bytes
    layers = config.text.layers
    assert short.bytes_per_position == full.bytes_per_position // 2 + full.bytes_per_position // layers, (
        "one is widened"
    )


@pytest.mark.parametrize(
    ("precision", "kv_precision", "kib"),
    [
        ("float32", "auto", 192),
        ("float32", "float32", 192),
        ("float32", "float16", 104),
        ("int8", "auto", 104),
        ("int8", "float32", 192),
        ("int8", "float16", 104),
        ("bfloat16", "auto", 96),
        ("bfloat16", "float32", 96),
        ("float16", "float16", 96),
    ],
)
def test_a_position_of_the_cache(precision: str, kv_precision: str, kib: int) -> None:
    """24 layers of 8 KiB in float32; half of that in float16, and one of them in float32, as it is read."""
    taken = footprint_of(tensors_of(HALF_BILLION), HALF_BILLION, precision, kv_precision)
    assert taken.bytes_per_position == kib * 1024


def test_what_has_to_be_converted_is_there_as_a_whole(tmp_path: Path) -> None:
    """The 2B's file holds bfloat16: its word embeddings cannot be used as they are mapped."""
    as_it_is, converted = (footprint_of(tensors_of(TWO_BILLION, dtype), TWO_BILLION) for dtype in ("F32", "BF16"))
    embeddings_bytes = 51_200 * 2048 * 4
    assert converted.text_bytes - as_it_is.text_bytes == embeddings_bytes - 2048 * mmap.PAGESIZE
    header = {"__metadata__": {"a": "b"}, "x": {"dtype": "F16", "shape": [10, 7], "data_offsets": [0, 140]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(140))
    assert tensors_in(tmp_path / "model.safetensors") == {"x": Stored("F16", (10, 7))}
    assert weights_bytes(footprint(tmp_path, DEMO)) == 280


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_half_billion_keeps_its_promise(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak of everything together: at most 2.7 and 1.15 GB; of the daemon 60 MiB, of the worker 240 before any weight.

    Work space is an upper estimate, which is left out here.
    """
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for precision, most_bytes in (("float32", 2.7e9), ("int8", 1.15e9)):
        taken = footprint_of(tensors_of(HALF_BILLION), HALF_BILLION, precision)
        lean = replace(taken, vision_activation_bytes=0, text_activation_bytes=0)
        found = needs.needs_of(lean, HALF_BILLION, 240 * MIB)
        assert found.smallest_positions == 730 + SMALLEST_ANSWER_POSITIONS
        peak_bytes = found.at(found.smallest_positions) + 60 * MIB
        assert 0.8 * most_bytes < peak_bytes < most_bytes, precision


def test_the_region_head_is_not_counted_for_who_captions() -> None:
    taken = footprint_of(tensors_of(HALF_BILLION), HALF_BILLION)
    found = needs.needs_of(taken, HALF_BILLION)
    assert taken.region_bytes > 100 * MIB
    assert found.vision_bytes + found.text_bytes == taken.vision_bytes + taken.text_bytes


def test_the_room_is_counted_with_the_cache_of_a_full_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")  # on a small board the kernels take more than is saved
    budget = Budget(1700 * MIB, "a test")
    there = needs.room(MODEL_DIR, DEMO, budget, runtime_bytes=1000)
    assert (there.budget_bytes, there.budget_reason) == (1700 * MIB, "a test")
    exact = needs.needs_of(footprint(MODEL_DIR, DEMO), DEMO, 1000)
    assert there.float32_bytes == exact.at(82 + 256)
    assert there.int8_bytes < there.float32_bytes
    shorter = needs.room(MODEL_DIR, DEMO, budget, runtime_bytes=1000, kv="float16")
    assert there.float32_bytes - shorter.float32_bytes == (82 + 256) * 1024, "of 4 KiB a position"
