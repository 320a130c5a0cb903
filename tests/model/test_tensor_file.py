"""Writing a safetensors file tensor by tensor, read back by safetensors' own reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from edge_daemon.errors import ModelError
from edge_daemon.models.tensor_file import TensorFile

SPECS = {"half": ("F16", (3, 5)), "wide": ("F32", (2, 3, 4)), "brain": ("BF16", (7,)), "empty": ("F32", (0, 4))}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtypes = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    return {
        name: torch.randn(shape, generator=generator).to(dtypes[dtype]).contiguous()
        for name, (dtype, shape) in SPECS.items()
    }


@pytest.mark.parametrize("backwards", [False, True], ids=["in turn", "out of turn"])
def test_safetensors_reads_what_was_written(tmp_path: Path, backwards: bool) -> None:
    path = tmp_path / "model.safetensors"
    with TensorFile(path, SPECS) as file:
        for name in sorted(file.specs, key=list(file.specs).index, reverse=backwards):
            file.write(name, tensors()[name])
    read = load_file(path)
    assert set(read) == set(SPECS)
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_arrays_are_written_row_by_row_whatever_their_layout(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with TensorFile(tmp_path / "a", {"a": ("F32", (4, 3)), "b": ("F32", (2, 2))}) as file:
        file.write("a", array.T)
        file.write("b", array[::2, ::2])
    read = load_file(tmp_path / "a")
    assert torch.equal(read["a"], torch.from_numpy(array.T.copy()))
    assert torch.equal(read["b"], torch.from_numpy(array[::2, ::2].copy()))


def test_wide_numbers_lie_aligned(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "a", {"odd": ("F16", (3,)), "wide": ("F32", (2,))}) as file:
        file.write("odd", np.ones(3, np.float16))
        file.write("wide", np.ones(2, np.float32))
    with safe_open(tmp_path / "a", framework="pt") as read:
        assert read.get_tensor("wide").data_ptr() % 4 == 0


def test_a_tensor_that_was_never_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "a", {"one": ("F32", (1,)), "two": ("F32", (1,))})
    file.write("one", np.ones(1, np.float32))
    with pytest.raises(ModelError, match="never written: two"):
        file.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("other", np.ones(2, np.float32)),
        ("a", np.ones(3, np.float32)),
        ("a", np.ones(2, np.float16)),
        ("a", np.ones(2, np.float64)),
    ],
    ids=["unknown", "shape", "dtype", "dtype of no file"],
)
def test_what_was_not_announced_is_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match="announced"),
        TensorFile(tmp_path / "f", {"a": ("F32", (2,))}) as file,
    ):
        file.write(name, array)
    assert os.listdir(tmp_path) == []


def test_no_tensor_is_written_twice(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "f", {"a": ("F32", (2,))})
    file.write("a", np.ones(2, np.float32))
    with pytest.raises(ValueError, match="written already"):
        file.write("a", np.ones(2, np.float32))
    file.abort()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is the disk that is full: the kernel refuses the write."""
    program = f"""
import numpy as np, resource, signal
from pathlib import Path
from edge_daemon.models.tensor_file import TensorFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with TensorFile(Path({str(tmp_path / "f")!r}), {{"a": ("F32", (1 << 20,))}}) as file:
    file.write("a", np.ones(1 << 20, np.float32))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ModelError" in done.stderr
    assert "writing stopped at byte 1048576: File too large" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_file_that_looks_complete(tmp_path: Path) -> None:
    program = f"""
import numpy as np, os, signal
from pathlib import Path
from edge_daemon.models.tensor_file import TensorFile
file = TensorFile(Path({str(tmp_path / "f")!r}), {{"a": ("F32", (9,)), "b": ("F32", (9,))}})
file.write("a", np.ones(9, np.float32))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "f").exists()
    (left,) = tmp_path.iterdir()
    with pytest.raises(SafetensorError):
        load_file(left)
