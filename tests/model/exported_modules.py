"""A model written by PyTorch's own ONNX exporter, in the ways that checkpoints differ.

Rotary layout, mask, tables, patches by a convolution or flattened otherwise, cosines and sines in another order.
Knows nothing of our import.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_daemon.moondream.config import Mask, ModelConfig, load_config
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import ROTARY_THETA, Text, TextBlock
from edge_daemon.moondream.vision import Mlp, Vision


@dataclass(frozen=True)
class Ways:
    """How a checkpoint is written."""

    pairs_in: bool = False
    """q and k rotate in pairs of neighbours."""
    pairs_out: bool = False
    """Rotated pairs lie side by side."""
    mask: Mask = "causal"
    context: int = 160
    """Length of the tables of rotations and of the mask."""
    patches: str = "channel first"
    """`channel first`, `channel last` or `convolution`."""
    waves: str = "cos, sin"
    """`cos, sin`, `sin, cos` or `in turn`; the last with 2π in the features."""
    opset: int = 17


class Decoder(nn.Module):
    """input_embeds and kv_cache → hidden, new_kv_cache and logits, with tables of a fixed length."""

    cos: Tensor
    sin: Tensor
    seen: Tensor

    def __init__(self, text: Text, ways: Ways, prefix: int) -> None:
        super().__init__()
        self.text, self.ways = text, ways
        rotary_dim, context = text.config.rotary_dim, ways.context
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        angles = torch.arange(context, dtype=torch.float32)[:, None] * ROTARY_THETA**-exponents
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        seen = torch.ones(context, context, dtype=torch.bool).tril()
        if ways.mask == "prefix":
            seen[:prefix, :prefix] = True
        self.register_buffer("seen", seen)
        if ways.pairs_in:
            self._put_pairs_side_by_side(rotary_dim)

    @property
    def blocks(self) -> Iterable[TextBlock]:
        return cast("Iterable[TextBlock]", self.text.blocks)

    def _put_pairs_side_by_side(self, rotary_dim: int) -> None:
        """Rows of q and k so that rotating neighbours gives what rotating halves gave."""
        heads, width = self.text.config.heads, self.text.config.head_dim
        order = [position // 2 + position % 2 * rotary_dim // 2 for position in range(rotary_dim)]
        order += range(rotary_dim, width)
        for block in self.blocks:
            for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
                rows = parameter.view(3, heads, width, -1)
                rows[:2] = rows[:2, :, order].clone()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary_dim = self.text.config.rotary_dim
        turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
        first, second = (turned[..., 0::2], turned[..., 1::2]) if self.ways.pairs_in else turned.chunk(2, -1)
        real, imaginary = first * cos - second * sin, first * sin + second * cos
        if self.ways.pairs_out:
            return torch.cat([torch.stack([real, imaginary], -1).flatten(-2), rest], -1)
        return torch.cat([real, imaginary, rest], -1)

    def forward(self, input_embeds: Tensor, kv_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.text.config
        x, past = input_embeds.float(), kv_cache.float()
        begin, new = kv_cache.shape[4], input_embeds.shape[1]
        cos, sin = self.cos[begin : begin + new], self.sin[begin : begin + new]
        seen = self.seen[begin : begin + new, : begin + new]
        states = []
        for layer, block in enumerate(self.blocks):
            y = block.ln(x)
            parts = block.attn.qkv(y).chunk(3, -1)
            q, k, v = (part.view(1, new, config.heads, config.head_dim).transpose(1, 2) for part in parts)
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
            states.append(torch.stack([k, v]))
            keys, values = torch.cat([past[layer, 0], k], 2), torch.cat([past[layer, 1], v], 2)
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(1, new, config.dim)) + block.mlp(y)
        logits = self.text.lm_head(self.text.post_ln(x[:, -1]))
        return x.half(), torch.stack(states).half(), logits.half()


class Encoder(nn.Module):
    """Pictures → features."""

    def __init__(self, vision: Vision, patches: str) -> None:
        super().__init__()
        self.vision, self.patches = vision, patches
        config, weight = vision.config, vision.patch_emb.weight.detach()
        self.squares = weight.view(-1, 3, config.patch_px, config.patch_px)
        self.last = nn.Linear(weight.shape[1], config.dim)
        self.last.weight.data = self.squares.permute(0, 2, 3, 1).reshape(weight.shape).clone()
        self.last.bias.data = vision.patch_emb.bias.detach()
        self.convolution = nn.Conv2d(3, config.dim, config.patch_px, config.patch_px)
        self.convolution.weight.data, self.convolution.bias = self.squares.clone(), self.last.bias

    def forward(self, picture: Tensor) -> Tensor:
        side, grid = self.vision.config.patch_px, self.vision.config.grid
        x = picture.float()
        if self.patches == "convolution":
            x = self.convolution(x).flatten(2).transpose(1, 2)
        else:
            x = x.view(-1, 3, grid, side, grid, side)
            last = self.patches == "channel last"
            x = x.permute(0, 2, 4, 3, 5, 1) if last else x.permute(0, 2, 4, 1, 3, 5)
            x = x.reshape(-1, grid * grid, 3 * side * side)
            x = self.last(x) if last else self.vision.patch_emb(x)
        x = x + self.vision.pos_emb
        for block in self.vision.blocks:
            x = block(x)
        features: Tensor = self.vision.post_ln(x)
        return features.half()


class Waves(nn.Module):
    """A coordinate or a size → an embedding."""

    def __init__(self, features: Tensor, layer: nn.Linear, order: str) -> None:
        super().__init__()
        half = features.shape[1]
        places = {
            "cos, sin": torch.arange(2 * half),
            "sin, cos": torch.arange(2 * half).roll(half),
            "in turn": torch.arange(2 * half).view(2, half).T.reshape(-1),
        }
        self.order = order
        self.features = nn.Parameter(features * (2 * math.pi if order == "in turn" else 1))
        self.layer = nn.Linear(2 * half, layer.out_features)
        self.layer.weight.data = layer.weight.detach()[:, places[order]].clone()
        self.layer.bias.data = layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        angles = (x if self.order == "in turn" else 2 * math.pi * x) @ self.features
        cos, sin = angles.cos(), angles.sin()
        if self.order == "in turn":
            waves = torch.stack([cos, sin], -1).flatten(-2)
        else:
            waves = torch.cat([cos, sin] if self.order == "cos, sin" else [sin, cos], -1)
        embedding: Tensor = self.layer(waves)
        return embedding.half()


class Layers(nn.Module):
    """Two layers with GELU between them, and a shape for what comes out."""

    def __init__(self, mlp: Mlp, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp, self.shape = mlp, shape

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x.float())
        return y.view(self.shape).half()


class Table(nn.Module):
    """Token ids → embeddings."""

    def __init__(self, wte: Tensor) -> None:
        super().__init__()
        self.wte = nn.Parameter(wte)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.wte).half()


def parts_of(directory: Path) -> tuple[ModelConfig, Vision, Text, Region]:
    """The modules of a model directory, with copies of its tensors."""
    config, tensors = load_config(directory), load_file(directory / "model.safetensors")
    assert config.region is not None
    parts = Vision(config.vision, config.text.dim), Text(config.text), Region(config.region, config.text.dim)
    for prefix, part in zip(("vision", "text", "region"), parts, strict=True):
        part.load_state_dict({name: tensors[f"{prefix}.{name}"].float() for name in part.state_dict()})
        part.requires_grad_(False).eval()
    return config, *parts


def export_by_torch(model: Path, out: Path, ways: Ways) -> None:
    """The eight graphs and the state of BOS of a model directory."""
    config, vision, text, region = parts_of(model)
    decoder = Decoder(text, ways, config.prefix_positions)
    width, heads, head_dim = config.text.dim, config.text.heads, config.text.head_dim
    assert config.region is not None

    def write(name: str, module: nn.Module, *shapes: tuple[int, ...], **dynamic: dict[int, str]) -> None:
        inputs = tuple(torch.randn(shape).half() for shape in shapes)
        names = list(dynamic) if name == "text_decoder" else ["input"]
        save(out / f"{name}.onnx", module, inputs, names[: len(shapes)], ways.opset, dynamic)

    out.mkdir(parents=True)
    crop, patches = config.vision.crop_px, config.vision.patches
    write("vision_encoder", Encoder(vision, ways.patches), (1, 3, crop, crop), input={0: "n"})
    write("vision_projection", Layers(vision.proj_mlp, (1, patches, width)), (1, patches, 2 * config.vision.dim))
    past = (config.text.layers, 2, 1, heads, 3, head_dim)
    axes = {"input_embeds": {1: "s"}, "kv_cache": {4: "p"}, "hidden": {1: "s"}, "new_kv_cache": {4: "s"}}
    write("text_decoder", decoder, (1, 4, width), past, **axes)
    ids = torch.tensor([[1, 2, 3]])
    save(out / "text_encoder.onnx", Table(text.wte.data), (ids,), ["input_ids"], ways.opset, {"input_ids": {1: "s"}})
    write("coord_encoder", Waves(region.coord_features, region.coord_encoder, ways.waves), (1,))
    write("size_encoder", Waves(region.size_features, region.size_encoder, ways.waves), (2,))
    write("coord_decoder", Layers(region.coord_decoder, (config.region.coord_bins,)), (width,))
    write("size_decoder", Layers(region.size_decoder, (2, config.region.size_bins)), (width,))
    bos = text.embed(torch.tensor([[config.tokens.bos]]))
    _, kv, _ = decoder(bos, torch.zeros(config.text.layers, 2, 1, heads, 0, head_dim))
    np.save(out / "initial_kv_cache.npy", kv.numpy())


def save(
    path: Path,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: list[str],
    opset: int,
    dynamic: dict[str, dict[int, str]],
) -> None:
    """Trace and write one module."""
    outputs = ["hidden", "new_kv_cache", "logits"] if path.stem == "text_decoder" else ["output"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter of traces is called old by torch; official files are of its time
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=names,
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=opset,
            dynamo=False,
        )
