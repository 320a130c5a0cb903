"""The parts computed by torch, from the tensors of `model.safetensors`: any device, any float precision, or int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from edge_daemon.errors import ModelError
from edge_daemon.moondream import attention
from edge_daemon.moondream.attention import by_head, in_bfloat16
from edge_daemon.moondream.config import ModelConfig
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.linear import Linear, PackedLinear, replace
from edge_daemon.moondream.quantize import in_int8, multiplies_bfloat16, require_kernels
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.trials import bfloat16_pays, by_head_pays
from edge_daemon.moondream.vision import Vision
from edge_daemon.moondream.weights import Weights, forget

M = TypeVar("M", bound=nn.Module)


class TorchParts:
    """A `Parts` (see parts.py) of one directory."""

    def __init__(
        self, directory: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype, int8: bool = False
    ) -> None:
        """Map the weights; `int8` is for the CPU and keeps everything between the linear layers in `dtype`.

        Raises ModelError for tensors that belong to no part, UnavailableError where there are no kernels for int8.
        """
        self.config, self.device, self.dtype = config, device, dtype
        self.int8 = int8
        many = device.type == "cpu" and dtype == torch.float32 and config.prefix_positions >= attention.MANY
        self._exact = by_head if many and by_head_pays() else None
        self._way = in_bfloat16 if many and int8 and multiplies_bfloat16() and bfloat16_pays() else self._exact
        if int8:
            require_kernels()
        self.weights = Weights(directory, device, dtype)
        self.weights.refuse_others(frozenset({"vision", "text"} | ({"region"} if config.region else set())))

    @property
    def precision(self) -> str:
        """The name of the dtype, or int8."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    def vision(self) -> Vision:
        """Vision encoder and projection."""
        vision, width = self.config.vision, self.config.text.dim
        return self._part("vision", lambda: Vision(vision, width, self._way, self._exact))

    def text(self) -> Text:
        """The decoder, and a look at the stored BOS if there shall be one."""
        text = self.config.text
        stored = {BOS_KV: (text.layers, 2, text.heads, 1, text.head_dim)}
        extra = stored if self.config.bos_state == "stored" else None
        prefix = self.config.prefix_positions if self.config.mask == "prefix" else 0
        return self._part("text", lambda: Text(text, prefix, self._way), extra=extra)

    def _part(
        self,
        prefix: Literal["vision", "text"],
        build: Callable[[], M],
        extra: Mapping[str, tuple[int, ...]] | None = None,
    ) -> M:
        """With the linear layers that are fastest here, or those of int8.

        One layer at a time, so that nothing large is there twice, whatever the file holds it in.
        """
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return self.weights.part(prefix, build, extra)
        part = self.weights.part(prefix, build, extra, as_stored=True)
        if self.int8:
            self._refuse_no_numbers({f"{prefix}.{name}": p for name, p in part.named_parameters() if p.dim() != 2})

        def packed(name: str, layer: Linear) -> nn.Module:
            stored = layer.weight
            layer.to(self.dtype)
            try:
                built = in_int8(layer, prefix, name) if self.int8 else PackedLinear(layer)
            except ValueError as error:
                raise ModelError(
                    f"{self.weights.path}: {prefix}.{name}.weight {error}: is the file damaged?"
                ) from error
            forget(stored)
            return built

        with torch.inference_mode(False), torch.no_grad():
            replace(part, packed)
            return part.to(self.dtype)

    def _refuse_no_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ModelError for values that int8 turns into numbers, or its kernels into an error of their own.

        Matrices are looked at where they are quantized; the table of embeddings is never read as a whole.
        """
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ModelError(f"{self.weights.path}: {name} has values that are not numbers: is the file damaged?")

    def region(self) -> Region:
        """The region head. Raises ModelError when the model has none."""
        region = self.config.region
        if region is None:
            raise ModelError(f"{self.weights.path}: the model has no region head")
        return self.weights.part("region", lambda: Region(region, self.config.text.dim))

    def bos_kv(self) -> Tensor:
        """The stored BOS."""
        kv = self.weights.tensor(BOS_KV)
        if self.int8:
            self._refuse_no_numbers({BOS_KV: kv})
        return kv
