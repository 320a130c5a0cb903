"""Writes one safetensors file tensor by tensor: names and shapes first, then each tensor at its place.

Never more than the tensor being written is in memory, and the file appears under its name only when it is
complete and on the disk. It knows no model: what the tensors mean and which are needed is the caller's matter.

The format (https://github.com/huggingface/safetensors, README): u64 little-endian length of the header, a JSON
header {name: {dtype, shape, data_offsets}} that may be padded with spaces, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_daemon.errors import ModelError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that a model directory may hold, and the bytes of one number."""
DTYPE_OF = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "float32": "F32",
    "float16": "F16",
}
HEADER_ALIGNMENT = 8
"""Data begins at a multiple of this, so that mapped tensors are aligned."""

Spec = tuple[str, tuple[int, ...]]
"""dtype as safetensors names it, and shape."""


class TensorFile:
    """One safetensors file in the making. Leaving `with` by an error removes it."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        """A file at `path` (once closed) that will hold these tensors: name → (dtype, shape). Raises ModelError."""
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.specs = dict(sorted(specs.items(), key=lambda item: -ITEM_BYTES[item[1][0]]))  # wider first: no misfits
        self._waiting = list(self.specs)
        header, self._offsets = _layout(self.specs)
        try:
            self._file = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ModelError(f"{self.partial}: {error.strerror}") from error
        self._write_at(0, memoryview(header))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif self._file >= 0:
            self.close()

    def write(self, name: str, value: Tensor | NDArray[Any]) -> None:
        """Put one tensor at its place, in any order.

        Raises ValueError for a tensor that was not announced, was written before, or has another dtype or shape than
        announced, and ModelError when the disk is full.
        """
        if name not in self._waiting:
            raise ValueError(f"{self.path}: {name} is not announced, or written already")
        dtype, shape = self.specs[name]
        if (DTYPE_OF.get(str(value.dtype)), tuple(value.shape)) != (dtype, shape):
            raise ValueError(f"{self.path}: {name} is {value.dtype} {tuple(value.shape)}, announced {dtype} {shape}")
        self._write_at(self._offsets[name], _bytes_of(value))
        self._waiting.remove(name)

    def close(self) -> None:
        """Finish: everything on the disk, under its name.

        Raises ModelError for tensors that were announced and never written; nothing is left behind then.
        """
        if self._waiting:
            self.abort()
            raise ModelError(f"{self.path}: never written: {', '.join(self._waiting)}")
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1
        self.partial.replace(self.path)

    def abort(self) -> None:
        """Forget the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.partial.unlink(missing_ok=True)

    def _write_at(self, offset: int, content: memoryview) -> None:
        done = 0
        while done < len(content):
            try:
                done += os.pwrite(self._file, content[done:], offset + done)
            except OSError as error:
                self.abort()
                raise ModelError(f"{self.path}: writing stopped at byte {offset + done}: {error.strerror}") from error


def _layout(specs: Mapping[str, Spec]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where in the file each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    first = len(text) + 8
    places = {name: first + entries[name]["data_offsets"][0] for name in specs}
    return len(text).to_bytes(8, "little") + text, places


def _bytes_of(value: Tensor | NDArray[Any]) -> memoryview:
    """The numbers of a tensor or array, row by row; a copy only where they do not lie so already."""
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        array: NDArray[Any] = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    else:
        array = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return array.data
