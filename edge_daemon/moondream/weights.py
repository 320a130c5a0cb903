"""Weights of a model directory: mapped, never copied where they fit as they are, and checked by name and shape.

Modules are made on the meta device and take the mapped tensors as their parameters (`assign=True`), so
resident memory grows only with the pages that are read. Only safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edge_daemon.errors import ModelError
from edge_daemon.model_files import WEIGHTS

DTYPES = ("F32", "F16", "BF16")
"""What may be in the file, whatever it is computed in."""
CPU = torch.device("cpu")
M = TypeVar("M", bound=nn.Module)


class Weights:
    """One open `model.safetensors`."""

    def __init__(self, directory: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
        """Map the file; tensors are handed out on `device` in `dtype`.

        Raises ModelError when the file is missing or no safetensors file.
        """
        self.path = directory / WEIGHTS
        self._device, self._dtype = device, dtype
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file")
        try:
            self._file = cast("Any", safe_open(self.path, framework="pt", device="cpu"))  # its stub is untyped
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.path}: not a usable safetensors file: {error}") from error
        self.names: frozenset[str] = frozenset(self._file.keys())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the file; tensors that were handed out stay mapped."""
        self._file = None

    def tensor(self, name: str, as_stored: bool = False) -> Tensor:
        """One tensor; `as_stored` it is mapped, whatever its type."""
        if name not in self.names:
            raise ModelError(f"{self.path}: missing tensor {name}")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor if as_stored else tensor.to(self._device, self._dtype)

    def refuse_others(self, prefixes: frozenset[str]) -> None:
        """Raise ModelError that lists every tensor that is of no part in `prefixes`."""
        others = sorted(name for name in self.names if name.partition(".")[0] not in prefixes)
        if others:
            raise self._misfit([f"unexpected tensor {name}" for name in others])

    def part(
        self,
        prefix: str,
        build: Callable[[], M],
        extra: Mapping[str, tuple[int, ...]] | None = None,
        as_stored: bool = False,
    ) -> M:
        """Build a module on the meta device and give it the tensors under `prefix.`, `as_stored` or converted.

        `extra` are names and shapes under the prefix that belong to the checkpoint but not to the module.
        Raises ModelError that lists every missing, unexpected, misshapen and mistyped tensor.
        """
        with torch.inference_mode(False), torch.device("meta"):  # plain tensors, wherever the first use is
            module = build()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        present = {name for name in self.names if name.startswith(f"{prefix}.")}
        self._compare({f"{prefix}.{name}": shape for name, shape in shapes.items()} | dict(extra or {}), present)
        with torch.inference_mode(False):
            tensors = {name: self.tensor(f"{prefix}.{name}", as_stored) for name in shapes}
            module.load_state_dict(tensors, strict=True, assign=True)
        return module.requires_grad_(False).eval()

    def _compare(self, wanted: dict[str, tuple[int, ...]], present: set[str]) -> None:
        problems = [f"missing tensor {name} {wanted[name]}" for name in sorted(wanted.keys() - present)]
        problems += [f"unexpected tensor {name}" for name in sorted(present - wanted.keys())]
        for name in sorted(wanted.keys() & present):
            header = self._file.get_slice(name)
            shape, dtype = tuple(header.get_shape()), header.get_dtype()
            if shape != wanted[name]:
                problems.append(f"{name} has shape {shape}, config.json says {wanted[name]}")
            if dtype not in DTYPES:
                problems.append(f"{name} has dtype {dtype}, which is not one of {', '.join(DTYPES)}")
        if problems:
            raise self._misfit(problems)

    def _misfit(self, problems: list[str]) -> ModelError:
        return ModelError(f"{self.path} does not fit its config.json:\n  " + "\n  ".join(problems))


def forget(tensor: Tensor) -> None:
    """Give back the memory of a mapped tensor's pages; they are read again from the file if anyone asks.

    Only whole pages of its own. Does nothing to a tensor that is not on the CPU.
    """
    if tensor.device != CPU:
        return
    first, length = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (first + length - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)
