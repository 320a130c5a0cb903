"""From a picture to crops, and from the crops' features back to one grid. Knows no weights.

Two schemes, a property of the checkpoint (`ModelConfig.cropping`):

* template: the whole picture squeezed to one crop; pictures of 1.4 crops or more also give 1×2, 2×1 or
  2×2 tiles. Bicubic (the scheme the 0.5B was published with). Its only client, moondream 0.0.6, puts the tiles
  together from the first crop on, so that the whole picture stands where the first tile would, and the last tile
  is never looked at. Whoever runs those weights must do the same; so the last tile is not even cut here.
* overlap: tiles of 19 patches with a margin of 4 patches on each side, 12 at most. Lanczos (upstream's
  torch code since 2025).

A tiling of (1, 1) means that the only tile *is* the whole picture: it is encoded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edge_daemon.moondream.config import OVERLAP_MARGIN, ModelConfig

TEMPLATE_TILINGS = ((1, 2), (2, 1), (2, 2))
"""Rows × columns, in the order in which ties are resolved."""
TEMPLATE_LIMIT = 1.4
"""Pictures whose longer side is below 1.4 crops get no tiles."""
OVERLAP_MAX_TILES = 12

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crops:
    """What the vision encoder is given for one picture."""

    pixels: Pixels
    """(n, crop_px, crop_px, 3); the whole picture first, then the tiles row by row that the scheme looks at."""
    tiling: tuple[int, int]
    """Rows and columns of tiles; (1, 1) when there are none besides the whole picture."""


def crop(picture: Image.Image, config: ModelConfig) -> Crops:
    """Cut an RGB picture as the checkpoint wants it."""
    size_px = config.vision.crop_px
    if config.cropping == "template":
        return template_crops(picture, size_px)
    return overlap_crops(picture, size_px, config.vision.patch_px)


def template_crops(picture: Image.Image, size_px: int) -> Crops:
    """The template scheme."""
    crops = [resize(picture, size_px, size_px, Image.Resampling.BICUBIC)]
    rows, columns = tiling = template_tiling(picture.width, picture.height, size_px)
    if tiling != (1, 1):
        tile_w, tile_h = picture.width // columns, picture.height // rows
        for tile in range(rows * columns - 1):
            row, column = divmod(tile, columns)
            box = (column * tile_w, row * tile_h, (column + 1) * tile_w, (row + 1) * tile_h)
            crops.append(resize(picture.crop(box), size_px, size_px, Image.Resampling.BICUBIC))
    return Crops(np.stack([np.asarray(c) for c in crops]), tiling)


def template_tiling(width_px: int, height_px: int, size_px: int) -> tuple[int, int]:
    """(1, 1) for small pictures, else the tiling with the nearest aspect ratio."""
    if max(width_px, height_px) < size_px * TEMPLATE_LIMIT:
        return (1, 1)
    aspect = width_px / height_px
    return min(TEMPLATE_TILINGS, key=lambda tiling: abs(tiling[1] / tiling[0] - aspect))


def overlap_crops(picture: Image.Image, size_px: int, patch_px: int) -> Crops:
    """The overlap scheme."""
    margin_px = OVERLAP_MARGIN * patch_px
    window_px = size_px - 2 * margin_px
    rows, columns = tiling = overlap_tiling(picture.width - 2 * margin_px, picture.height - 2 * margin_px, window_px)
    crops = [np.asarray(resize(picture, size_px, size_px, Image.Resampling.LANCZOS))]
    if tiling != (1, 1):
        width_px, height_px = columns * window_px + 2 * margin_px, rows * window_px + 2 * margin_px
        resized = np.asarray(resize(picture, width_px, height_px, Image.Resampling.LANCZOS))
        for row in range(rows):
            for column in range(columns):
                top, left = row * window_px, column * window_px
                crops.append(resized[top : top + size_px, left : left + size_px])
    return Crops(np.stack(crops), tiling)


def overlap_tiling(width_px: int, height_px: int, window_px: int) -> tuple[int, int]:
    """Rows and columns of windows for a picture without its margins, at most OVERLAP_MAX_TILES in all."""
    if width_px <= window_px or height_px <= window_px:
        return (1, 1)
    rows, columns = math.ceil(height_px / window_px), math.ceil(width_px / window_px)
    if rows * columns > OVERLAP_MAX_TILES:
        shrink = math.sqrt(OVERLAP_MAX_TILES / (rows * columns))
        rows, columns = max(1, math.floor(rows * shrink)), max(1, math.floor(columns * shrink))
    else:
        rows = max(rows, math.floor(math.sqrt(OVERLAP_MAX_TILES * height_px / width_px)))
        columns = max(columns, math.floor(math.sqrt(OVERLAP_MAX_TILES * width_px / height_px)))
    # Upstream cuts only after the second branch, so that a strip of 379 × 26 600 px gives 24 tiles; we bound both.
    if columns > rows:
        columns = min(columns, OVERLAP_MAX_TILES // rows)
    else:
        rows = min(rows, OVERLAP_MAX_TILES // columns)
    return (rows, columns)


def resize(picture: Image.Image, width_px: int, height_px: int, kernel: Image.Resampling) -> Image.Image:
    """Resize, the horizontal pass first.

    Pillow rounds to bytes between its two passes, so their order shows. Up to 12 it was always this one;
    Pillow 13 takes the other one for tall pictures. The models saw the former.
    """
    return picture.resize((width_px, picture.height), kernel).resize((width_px, height_px), kernel)


def scale(pixels: Pixels) -> Tensor:
    """Crops (n, S, S, 3) of bytes → (n, 3, S, S) float32 in −1…1: (p/255 − 0.5) / 0.5."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def reassemble(features: Tensor, tiling: tuple[int, int], config: ModelConfig) -> Tensor:
    """Features of all crops (N, P, D) → those of the tiles, put together and pooled to one crop's grid, (P, D)."""
    if tiling == (1, 1):
        return features[0]
    grid = config.vision.grid
    first, margin = (1, OVERLAP_MARGIN) if config.cropping == "overlap" else (0, 0)
    tiles = features[first:].reshape(-1, grid, grid, features.shape[-1])
    whole = stitch(tiles, tiling, margin).permute(2, 0, 1)
    return F.adaptive_avg_pool2d(whole, grid).flatten(1).T


def stitch(tiles: Tensor, tiling: tuple[int, int], margin: int) -> Tensor:
    """Tiles (rows·columns, g, g, D) → one map; inner edges lose `margin` cells on each side."""
    rows, columns = tiling
    grid = tiles.shape[1]

    def kept(index: int, count: int) -> slice:
        return slice(0 if index == 0 else margin, grid if index == count - 1 else grid - margin)

    return torch.cat(
        [
            torch.cat([tiles[r * columns + c][kept(r, rows), kept(c, columns)] for c in range(columns)], dim=1)
            for r in range(rows)
        ]
    )
