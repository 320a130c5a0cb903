"""The plain formulation in float32: what one would write down first. `python -m tests.bench.plain DIRECTORY`.

`F.linear` on the mapped weights, `F.gelu`, attention with a mask, every layer in full, the picture and the prompt one
after the other. It shares no code with the product but for cropping and the configuration. The template scheme, one
crop, a causal mask and a stored BOS only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.image import crop, scale
from tests.bench.turns import Turn, serve

POSITIONS = 1024


class Plain:
    """A model directory."""

    def __init__(self, directory: Path) -> None:
        self.config: ModelConfig = load_config(directory)
        assert (self.config.mask, self.config.bos_state) == ("causal", "stored")
        self.weights = load_file(directory / "model.safetensors")
        text = self.config.text
        self.kv = torch.zeros(text.layers, 2, text.heads, min(POSITIONS, text.max_context), text.head_dim)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh"))

    def look(self, picture: Image.Image) -> Tensor:
        """An RGB picture → embeddings (P, T)."""
        shape, pixels = self.config.vision, crop(picture, self.config).pixels
        assert len(pixels) == 1
        patches = scale(pixels)[0].unfold(1, shape.patch_px, shape.patch_px).unfold(2, shape.patch_px, shape.patch_px)
        x = self.linear("vision.patch_emb", patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1))
        x = x + self.weights["vision.pos_emb"][0]
        for layer in range(shape.layers):
            block = f"vision.blocks.{layer}"
            q, k, v = self.split(self.linear(f"{block}.attn.qkv", self.norm(f"{block}.ln1", x)), shape.heads)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            x = x + self.linear(f"{block}.attn.proj", attended)
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.ln2", x))
        x = self.norm("vision.post_ln", x)
        return self.mlp("vision.proj_mlp", torch.cat([x, x], dim=-1))

    @staticmethod
    def split(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
        """(S, 3·D) → three of (heads, S, D/heads)."""
        return qkv.view(len(qkv), 3, heads, -1).permute(1, 2, 0, 3).unbind()

    def decode(self, x: Tensor, past: int) -> Tensor:
        """Embeddings (S, T) behind `past` positions → logits (V) of the last."""
        text, end = self.config.text, past + len(x)
        positions = torch.arange(past, end)
        mask = torch.arange(end) <= positions[:, None]
        angles = positions[:, None] * 10000.0 ** -(torch.arange(0, text.rotary_dim, 2) / text.rotary_dim)
        for layer in range(text.layers):
            block = f"text.blocks.{layer}"
            y = self.norm(f"{block}.ln", x)
            q, k, v = self.split(self.linear(f"{block}.attn.qkv", y), text.heads)
            self.kv[layer, 0, :, past:end], self.kv[layer, 1, :, past:end] = rotated(k, angles), v
            keys, values = self.kv[layer, :, :, :end]
            attended = F.scaled_dot_product_attention(rotated(q, angles), keys, values, attn_mask=mask)
            x = x + self.linear(f"{block}.attn.proj", attended.transpose(0, 1).flatten(1)) + self.mlp(f"{block}.mlp", y)
        return self.linear("text.lm_head", self.norm("text.post_ln", x))[-1]

    def caption(self, embeddings: Tensor, count: int) -> Iterator[int]:
        """`count` tokens of a short caption, whatever they are."""
        self.kv[:, :, :, :1] = self.weights["text.bos_kv"]
        self.decode(embeddings, 1)
        said, past = self.config.templates.caption["short"], 1 + len(embeddings)
        for _ in range(count):
            token = int(self.decode(self.weights["text.wte"][said], past).argmax())
            yield token
            said, past = [token], past + len(said)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """The first dimensions of each head turned, pair (i, i + half) by angle i."""
    half = angles.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def main() -> None:
    model = Plain(Path(sys.argv[1]))

    @torch.inference_mode()
    def caption(path: Path, count: int) -> Turn:
        start_s = time.perf_counter()
        embeddings = model.look(Image.open(path).convert("RGB"))
        encoded_s = time.perf_counter()
        said, came_s = [], []
        for token in model.caption(embeddings, count):
            said.append(token)
            came_s.append(time.perf_counter())
        gaps_s = [after - before for before, after in pairwise(came_s)]
        return Turn(encoded_s - start_s, came_s[0] - encoded_s, gaps_s, said)

    serve({"torch": torch.__version__}, caption)


if __name__ == "__main__":
    main()
