"""Weights of a model directory: mapped, never copied when they are float32, and checked by name and shape.

Modules are made on the meta device and take the mapped tensors as their parameters (`assign=True`), so
resident memory grows only with the pages that are read. Only safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edge_daemon.errors import ModelError

FILE_NAME = "model.safetensors"
M = TypeVar("M", bound=nn.Module)


class Weights:
    """One open `model.safetensors`."""

    def __init__(self, directory: Path) -> None:
        """Map the file. Raises ModelError when it is missing or no safetensors file."""
        self.path = directory / FILE_NAME
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file")
        try:
            self._file = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.path}: not a usable safetensors file: {error}") from error
        self.names = frozenset(self._file.keys())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the file; tensors that were handed out stay mapped."""
        self._file = None

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32."""
        if name not in self.names:
            raise ModelError(f"{self.path}: missing tensor {name}")
        return self._file.get_tensor(name).to(torch.float32)

    def part(self, prefix: str, build: Callable[[], M], extra: frozenset[str] = frozenset()) -> M:
        """Build a module on the meta device and give it the tensors under `prefix.`.

        `extra` are names under the prefix that belong to the checkpoint but not to the module.
        Raises ModelError that lists every missing, unexpected and misshapen tensor.
        """
        with torch.device("meta"):
            module = build()
        wanted = {f"{prefix}.{name}": tensor.shape for name, tensor in module.state_dict().items()}
        present = {name for name in self.names if name.startswith(f"{prefix}.")} - extra
        self._compare(wanted, present)
        module.load_state_dict(
            {name.removeprefix(f"{prefix}."): self.tensor(name) for name in wanted}, strict=True, assign=True
        )
        return module.requires_grad_(False).eval()

    def _compare(self, wanted: dict[str, torch.Size], present: set[str]) -> None:
        problems = [f"missing tensor {name} {tuple(wanted[name])}" for name in sorted(wanted.keys() - present)]
        problems += [f"unexpected tensor {name}" for name in sorted(present - wanted.keys())]
        for name in sorted(wanted.keys() & present):
            shape = tuple(self._file.get_slice(name).get_shape())
            if shape != tuple(wanted[name]):
                problems.append(f"{name} has shape {shape}, config.json says {tuple(wanted[name])}")
        if problems:
            raise ModelError(f"{self.path} does not fit its config.json:\n  " + "\n  ".join(problems))
