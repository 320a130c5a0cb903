"""The whole network once more, as plainly as possible: float64 numpy, loops, no cache, no batch.

Written from the description of the architecture, not from the code it is compared with, and sharing nothing
with it but the files of the checkpoint. Every call computes the whole sequence from its beginning.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

Array = NDArray[np.float64]


def gelu(x: Array) -> Array:
    """The tanh approximation."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def rotated(head: Array, position: int, rotary_dim: int) -> Array:
    """One head's vector: dimension i and i + rotary_dim/2 turn together by position · 10000^(−2i/rotary_dim)."""
    result = head.copy()
    half = rotary_dim // 2
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / rotary_dim)
        a, b = head[i], head[i + half]
        result[i] = a * math.cos(angle) - b * math.sin(angle)
        result[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return result


def attend(query: Array, keys: Array, values: Array) -> Array:
    """One query (E) on the keys and values (L, E) that it may see."""
    return softmax(keys @ query / math.sqrt(len(query))) @ values


class Naive:
    """One checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        self.weights: dict[str, Array] = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    # -- pieces

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        mean = x.mean(axis=-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
        normal = (x - mean) / np.sqrt(variance + 1e-5)
        return np.asarray(normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def mlp(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", x)))

    # -- vision

    def crops(self, picture: Image.Image, tiling: tuple[int, int]) -> list[Array]:
        """The whole picture, then the tiles, each (S, S, 3) in −1…1; the tiling is given."""
        size = self.config["vision"]["crop_px"]
        rows, columns = tiling
        if self.config["cropping"] == "template":
            found = [picture.resize((size, size), Image.Resampling.BICUBIC)]
            width, height = picture.width // columns, picture.height // rows
            for r in range(rows) if tiling != (1, 1) else ():
                for c in range(columns):
                    piece = picture.crop((c * width, r * height, c * width + width, r * height + height))
                    found.append(piece.resize((size, size), Image.Resampling.BICUBIC))
        else:
            found = [picture.resize((size, size), Image.Resampling.LANCZOS)]
            window = size - 8 * self.config["vision"]["patch_px"]
            large = picture.resize(
                (window * columns + size - window, window * rows + size - window), Image.Resampling.LANCZOS
            )
            for r in range(rows) if tiling != (1, 1) else ():
                for c in range(columns):
                    x, y = c * window, r * window
                    found.append(large.crop((x, y, x + size, y + size)))
        return [(np.asarray(f, dtype=np.float64) / 255 - 0.5) / 0.5 for f in found]

    def features(self, crop: Array) -> Array:
        """One crop (S, S, 3) → (P, D)."""
        vision = self.config["vision"]
        side, grid = vision["patch_px"], vision["crop_px"] // vision["patch_px"]
        patches = []
        for row in range(grid):
            for column in range(grid):
                patch = crop[row * side : (row + 1) * side, column * side : (column + 1) * side]
                patches.append([patch[y, x, c] for c in range(3) for y in range(side) for x in range(side)])
        x = self.linear("vision.patch_emb", np.array(patches)) + self.weights["vision.pos_emb"][0]
        for i in range(vision["layers"]):
            block = f"vision.blocks.{i}"
            x = x + self.vision_attention(f"{block}.attn", self.norm(f"{block}.ln1", x))
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.ln2", x))
        return self.norm("vision.post_ln", x)

    def vision_attention(self, name: str, x: Array) -> Array:
        heads, dim = self.config["vision"]["heads"], x.shape[1]
        width = dim // heads
        q, k, v = np.split(self.linear(f"{name}.qkv", x), 3, axis=1)
        result = np.zeros_like(x)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(len(x)):
                result[i, part] = attend(q[i, part], k[:, part], v[:, part])
        return self.linear(f"{name}.proj", result)

    def image_embeddings(self, picture: Image.Image, tiling: tuple[int, int]) -> Array:
        """(P, T)."""
        whole, *tiles = [self.features(crop) for crop in self.crops(picture, tiling)]
        if self.config["cropping"] == "template":  # as the client does: the whole picture counts as the first tile
            tiles = tiles and [whole, *tiles]
        local = self.reassembled(tiles, tiling) if tiles else whole
        return self.mlp("vision.proj_mlp", np.concatenate([whole, local], axis=1))

    def reassembled(self, tiles: list[Array], tiling: tuple[int, int]) -> Array:
        """Tiles' features → (P, D), cell by cell."""
        grid = math.isqrt(len(tiles[0]))
        margin = 4 if self.config["cropping"] == "overlap" else 0
        window = grid - 2 * margin
        rows, columns = tiling
        height, width = rows * window + 2 * margin, columns * window + 2 * margin
        whole = np.zeros((height, width, tiles[0].shape[1]))
        for y in range(height):
            for x in range(width):
                r = min(max((y - margin) // window, 0), rows - 1)
                c = min(max((x - margin) // window, 0), columns - 1)
                whole[y, x] = tiles[r * columns + c][(y - r * window) * grid + x - c * window]
        return pooled(whole, grid).reshape(grid * grid, -1)

    # -- text

    def embed(self, tokens: list[int]) -> Array:
        return self.weights["text.wte"][tokens]

    def seen_from(self, query: int, length: int) -> range:
        """The positions that one position may attend to."""
        prefix = 1 + (self.config["vision"]["crop_px"] // self.config["vision"]["patch_px"]) ** 2
        return range(min(length, prefix if self.config["mask"] == "prefix" and query < prefix else query + 1))

    def hidden(self, embeddings: Array) -> Array:
        """All embeddings behind BOS (S, T) → hidden states (S, T), before the last norm."""
        stored = self.weights.get("text.bos_kv")
        first = 0 if stored is None else 1
        x = embeddings if first else np.concatenate([self.embed([self.config["tokens"]["bos"]]), embeddings])
        for i in range(self.config["text"]["layers"]):
            block = f"text.blocks.{i}"
            y = self.norm(f"{block}.ln", x)
            attention = self.text_attention(f"{block}.attn", y, first, None if stored is None else stored[i])
            x = x + attention + self.mlp(f"{block}.mlp", y)
        return x[1 - first :]

    def text_attention(self, name: str, x: Array, first: int, stored: Array | None) -> Array:
        """`x` begins at position `first`; `stored` (2, heads, 1, E) is what stands before."""
        heads, width = self.config["text"]["heads"], x.shape[1] // self.config["text"]["heads"]
        rotary_dim = self.config["text"]["rotary_dim"]
        q, k, v = np.split(self.linear(f"{name}.qkv", x), 3, axis=1)
        result = np.zeros_like(x)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            keys = np.array([rotated(k[i, part], first + i, rotary_dim) for i in range(len(x))])
            values = v[:, part]
            if stored is not None:
                keys, values = np.concatenate([stored[0, h], keys]), np.concatenate([stored[1, h], values])
            for i in range(len(x)):
                seen = self.seen_from(first + i, len(keys))
                query = rotated(q[i, part], first + i, rotary_dim)
                result[i, part] = attend(query, keys[seen], values[seen])
        return self.linear(f"{name}.proj", result)

    def logits(self, hidden: Array) -> Array:
        return self.linear("text.lm_head", self.norm("text.post_ln", hidden))

    def greedy(self, image: Array, prompt: list[int], count: int) -> tuple[list[int], Array]:
        """`count` tokens, whatever they are, and the logits (count, V) that they were chosen by."""
        sequence, tokens, rows = np.concatenate([image, self.embed(prompt)]), [], []
        for _ in range(count):
            rows.append(self.logits(self.hidden(sequence)[-1]))
            tokens.append(int(rows[-1].argmax()))
            sequence = np.concatenate([sequence, self.embed(tokens[-1:])])
        return tokens, np.array(rows)

    # -- region

    def fourier(self, name: str, x: list[float]) -> Array:
        f = 2 * math.pi * np.array(x) @ self.weights[name]
        return np.concatenate([np.cos(f), np.sin(f)])

    def coordinate(self, hidden: Array) -> float:
        bins: int = self.config["region"]["coord_bins"]
        return int(self.mlp("region.coord_decoder", hidden).argmax()) / bins

    def sizes(self, hidden: Array) -> list[float]:
        bins = self.config["region"]["size_bins"]
        width, height = np.split(self.mlp("region.size_decoder", hidden), 2)
        found = [int(width.argmax()), int(height.argmax())]
        if self.config["region"]["size_scale"] == "linear":
            return [b / bins for b in found]
        return [2.0 ** (b / (bins - 1) * 10.0 - 10.0) for b in found]

    def regions(self, image: Array, prompt: list[int], most: int, sized: bool) -> list[tuple[float, ...]]:
        """(x, y, width, height) or (x, y) of up to `most` objects, until EOS."""
        sequence = np.concatenate([image, self.embed(prompt)])
        found: list[tuple[float, ...]] = []
        while len(found) < most:
            hidden = self.hidden(sequence)[-1]
            if int(self.logits(hidden).argmax()) == self.config["tokens"]["eos"]:
                break
            numbers: list[float] = []
            for _ in range(2):
                numbers.append(self.coordinate(hidden))
                new = self.linear("region.coord_encoder", self.fourier("region.coord_features", numbers[-1:]))
                sequence = np.concatenate([sequence, new[None]])
                hidden = self.hidden(sequence)[-1]
            if sized:
                size = self.sizes(hidden)
                new = self.linear("region.size_encoder", self.fourier("region.size_features", size))
                sequence = np.concatenate([sequence, new[None]])
                numbers += size
            found.append(tuple(numbers))
        return found


def pooled(x: Array, size: int) -> Array:
    """(H, W, D) → (size, size, D): the mean of cells floor(iH/size) … ceil((i+1)H/size)."""
    height, width, dim = x.shape
    result = np.zeros((size, size, dim))
    for i in range(size):
        for j in range(size):
            top, bottom = i * height // size, -(-(i + 1) * height // size)
            left, right = j * width // size, -(-(j + 1) * width // size)
            result[i, j] = x[top:bottom, left:right].mean(axis=(0, 1))
    return result


def resampled(pixels: NDArray[np.uint8], width_px: int, height_px: int, kernel: str) -> NDArray[np.float32]:
    """(H, W, 3) bytes resized by a separable kernel that widens when it shrinks; rounded after each pass."""
    x = pixels.astype(np.float32)
    across = kernel_matrix(pixels.shape[1], width_px, kernel)
    x = np.clip(np.floor(np.einsum("ow,hwc->hoc", across, x, optimize=True) + 0.5), 0, 255)
    down = kernel_matrix(pixels.shape[0], height_px, kernel)
    x = np.clip(np.floor(np.einsum("oh,hwc->owc", down, x, optimize=True) + 0.5), 0, 255)
    return np.asarray(x, dtype=np.float32)


def kernel_matrix(before: int, after: int, kernel: str) -> NDArray[np.float32]:
    """(after, before): how much of each old pixel is in each new one."""
    step = before / after
    widening = max(step, 1.0)
    centres = (np.arange(after) + 0.5) * step
    distance = np.abs(np.arange(before) + 0.5 - centres[:, None]) / widening
    if kernel == "bicubic":  # Keys 1981, a = −1/2
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    else:  # Lanczos, three lobes
        weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
