"""The parts computed by torch, from the tensors of `model.safetensors`, on any device and in any float precision."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edge_daemon.errors import ModelError
from edge_daemon.moondream.config import ModelConfig
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision
from edge_daemon.moondream.weights import BOS_KV, Weights


class TorchParts:
    """A `Parts` (see parts.py) of one directory."""

    def __init__(self, directory: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Map the weights. Raises ModelError for tensors that belong to no part."""
        self.config, self.device, self.dtype = config, device, dtype
        self.weights = Weights(directory, device, dtype)
        self.weights.refuse_others(frozenset({"vision", "text"} | ({"region"} if config.region else set())))

    @property
    def precision(self) -> str:
        """The name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def vision(self) -> Vision:
        """Vision encoder and projection."""
        return self.weights.part("vision", lambda: Vision(self.config.vision, self.config.text.dim))

    def text(self) -> Text:
        """The decoder, and a look at the stored BOS if there shall be one."""
        text = self.config.text
        stored = {BOS_KV: (text.layers, 2, text.heads, 1, text.head_dim)}
        extra = stored if self.config.bos_state == "stored" else None
        prefix = self.config.prefix_positions if self.config.mask == "prefix" else 0
        return self.weights.part("text", lambda: Text(text, prefix), extra)

    def region(self) -> Region:
        """The region head. Raises ModelError when the model has none."""
        region = self.config.region
        if region is None:
            raise ModelError(f"{self.weights.path}: the model has no region head")
        return self.weights.part("region", lambda: Region(region, self.config.text.dim))

    def bos_kv(self) -> Tensor:
        """The stored BOS."""
        return self.weights.tensor(BOS_KV)
