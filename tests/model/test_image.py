"""Cropping, tiling, scaling, stitching and pooling against hand-computed and independently computed values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edge_daemon.moondream.config import Cropping
from edge_daemon.moondream.image import (
    crop,
    overlap_tiling,
    reassemble,
    scale,
    stitch,
    template_tiling,
)
from tests.model.checkpoints import HALF_BILLION, TWO_BILLION, tiny_config
from tests.model.naive import pooled, resampled

PictureFactory = Callable[..., Image.Image]

# width, height: tiling (rows, columns) in the template scheme, in the overlap scheme; worked out by hand
TILINGS = {
    (512, 384): ((1, 1), (2, 4)),
    (384, 512): ((1, 1), (4, 2)),
    (512, 512): ((1, 1), (3, 3)),
    (529, 400): ((1, 1), (2, 4)),  # just below 1.4 × 378 = 529.2
    (530, 400): ((2, 2), (2, 4)),  # just above
    (640, 480): ((2, 2), (2, 4)),
    (480, 640): ((2, 1), (4, 2)),  # aspect 0.75 is as near to 0.5 as to 1: the first one wins
    (900, 600): ((1, 2), (2, 4)),  # aspect 1.5 is as near to 2 as to 1
    (1280, 720): ((1, 2), (2, 4)),
    (773, 767): ((2, 2), (3, 3)),
    (504, 378): ((1, 1), (1, 1)),
    (505, 379): ((1, 1), (2, 4)),  # one pixel more than a window in height
    (378, 378): ((1, 1), (1, 1)),
    (379, 2000): ((2, 1), (6, 1)),  # 8 × 2 windows at least: shrunk in proportion
    (1400, 380): ((1, 2), (2, 6)),  # 2 × 7 by aspect: columns cut to 12 in all
    (380, 1400): ((2, 1), (6, 2)),
    (100, 2000): ((2, 1), (1, 1)),
    (2000, 100): ((1, 2), (1, 1)),
    (1, 1): ((1, 1), (1, 1)),
    (20000, 1): ((1, 2), (1, 1)),
    (4032, 3024): ((2, 2), (2, 4)),
}
SCHEMES = {"template": HALF_BILLION, "overlap": TWO_BILLION}


def sizes(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@pytest.mark.parametrize("size", TILINGS, ids=sizes)
def test_tilings_are_the_hand_computed_ones(size: tuple[int, int]) -> None:
    width, height = size
    template, overlap = TILINGS[size]
    assert template_tiling(width, height, 378) == template
    assert overlap_tiling(width - 112, height - 112, 266) == overlap


@given(st.integers(1, 30_000), st.integers(1, 30_000))
def test_any_size_has_a_tiling_within_the_limits(width: int, height: int) -> None:
    rows, columns = overlap_tiling(width - 112, height - 112, 266)
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= 12
    rows, columns = template_tiling(width, height, 378)
    assert width // columns >= 1
    assert height // rows >= 1


@pytest.mark.parametrize("size", TILINGS, ids=sizes)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_crops_are_the_independently_resampled_pixels(
    scheme: str, size: tuple[int, int], noise: PictureFactory
) -> None:
    picture = noise(*size)
    found = crop(picture, SCHEMES[scheme])
    wanted = template_by_hand(picture) if scheme == "template" else overlap_by_hand(picture)
    assert found.tiling == TILINGS[size][scheme == "overlap"]
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape == wanted.shape
    difference = np.abs(found.pixels.astype(np.float32) - wanted)
    assert difference.max() <= 1  # Pillow's weights are integers of 22 bits: the last bit of a byte may differ
    assert (difference > 0).mean() < 0.01


def template_by_hand(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture)
    rows, columns = TILINGS[picture.size][0]
    found = [resampled(pixels, 378, 378, "bicubic")]
    if (rows, columns) != (1, 1):
        height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
        for r in range(rows):
            for c in range(columns):
                tile = pixels[r * height : r * height + height, c * width : c * width + width]
                found.append(resampled(tile, 378, 378, "bicubic"))
        found.pop()  # the client counts the whole picture as the first tile and never looks at the last one
    return np.stack(found)


def overlap_by_hand(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture)
    rows, columns = TILINGS[picture.size][1]
    found = [resampled(pixels, 378, 378, "lanczos")]
    if (rows, columns) != (1, 1):
        large = resampled(pixels, 112 + 266 * columns, 112 + 266 * rows, "lanczos")
        corners = [(266 * r, 266 * c) for r in range(rows) for c in range(columns)]
        found += [large[top : top + 378, left : left + 378] for top, left in corners]
    return np.stack(found)


def test_the_comparison_sees_a_shift_by_one_pixel(noise: PictureFactory) -> None:
    """Mutation check: had a tile begun one pixel off, the test above would have failed."""
    picture = noise(4032, 3024)
    right = crop(picture, HALF_BILLION).pixels[1].astype(np.float32)
    shifted = picture.crop((1, 0, 2017, 1512)).resize((378, 378), Image.Resampling.BICUBIC)
    assert np.abs(right - np.asarray(shifted)).max() > 10


def test_scale_is_exactly_the_published_formula() -> None:
    """(p/255 − 0.5) / 0.5, to the last bit, for every byte; channels first."""
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels[..., 1] = pixels[..., 1][:, ::-1]
    pixels[..., 2] = pixels[..., 2][:, :, ::-1]
    found = scale(pixels)
    wanted = (torch.from_numpy(pixels).float() / 255.0 - 0.5) / 0.5
    assert found.dtype == torch.float32
    assert found.shape == (1, 3, 16, 16)
    assert torch.equal(found, wanted.permute(0, 3, 1, 2))
    assert [float(found.min()), float(found.max())] == [-1.0, 1.0]


def stitched_by_index(tiles: NDArray[np.float32], tiling: tuple[int, int], margin: int) -> NDArray[np.float32]:
    """Cell by cell: which tile owns it, and where in the tile it lies."""
    rows, columns = tiling
    grid = tiles.shape[1]
    window = grid - 2 * margin
    whole = np.zeros((rows * window + 2 * margin, columns * window + 2 * margin, tiles.shape[3]), np.float32)
    for y in range(whole.shape[0]):
        for x in range(whole.shape[1]):
            r = min(max((y - margin) // window, 0), rows - 1)
            c = min(max((x - margin) // window, 0), columns - 1)
            whole[y, x] = tiles[r * columns + c, y - r * window, x - c * window]
    return whole


ALL_TILINGS = sorted({tiling for pair in TILINGS.values() for tiling in pair} | {(1, 12), (12, 1), (3, 4)})


@pytest.mark.parametrize("tiling", ALL_TILINGS, ids=sizes)
@pytest.mark.parametrize("margin", [0, 4])
def test_stitch_is_the_index_based_one(tiling: tuple[int, int], margin: int) -> None:
    tiles = np.random.default_rng(1).random((tiling[0] * tiling[1], 27, 27, 3), dtype=np.float32)
    found = stitch(torch.from_numpy(tiles), tiling, margin)
    assert np.array_equal(found.numpy(), stitched_by_index(tiles, tiling, margin))


@pytest.mark.parametrize("tiling", ALL_TILINGS, ids=sizes)
def test_stitching_undoes_cutting(tiling: tuple[int, int]) -> None:
    """Tiles cut from one map with overlaps give that map back."""
    rows, columns = tiling
    whole = torch.randn(19 * rows + 8, 19 * columns + 8, 2)
    tiles = [whole[19 * r : 19 * r + 27, 19 * c : 19 * c + 27] for r in range(rows) for c in range(columns)]
    assert torch.equal(stitch(torch.stack(tiles), tiling, 4), whole)


@pytest.mark.parametrize("tiling", ALL_TILINGS, ids=sizes)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reassemble_stitches_and_pools_like_the_naive_one(scheme: str, tiling: tuple[int, int]) -> None:
    """Overlapping tiles give maps that 27 does not divide (46 cells for two rows, 84 for four)."""
    count = 1 if tiling == (1, 1) else tiling[0] * tiling[1] + (scheme == "overlap")
    features = np.random.default_rng(2).standard_normal((count, 729, 3), dtype=np.float32)
    found = reassemble(torch.from_numpy(features), tiling, SCHEMES[scheme]).numpy()
    if tiling == (1, 1):
        wanted = features[0].astype(np.float64)
    else:
        tiles = features[scheme == "overlap" :].reshape(-1, 27, 27, 3)
        whole = stitched_by_index(tiles, tiling, 4 if scheme == "overlap" else 0)
        wanted = pooled(whole.astype(np.float64), 27).reshape(729, 3)
    assert found.shape == (729, 3)
    assert np.abs(found - wanted).max() < 1e-6


def test_a_picture_without_tiles_is_encoded_once(noise: PictureFactory) -> None:
    for config in SCHEMES.values():
        found = crop(noise(378, 378), config)
        assert found.pixels.shape == (1, 378, 378, 3)
        assert np.array_equal(found.pixels[0], np.asarray(noise(378, 378)))  # nothing to resize, nothing changed


def test_the_scheme_and_the_sizes_come_from_the_config(noise: PictureFactory) -> None:
    picture = noise(44, 40)
    schemes: tuple[Cropping, ...] = ("template", "overlap")
    found = {scheme: crop(picture, tiny_config(scheme)) for scheme in schemes}
    assert found["template"].pixels.shape == (4, 30, 30, 3)
    assert found["template"].tiling == (2, 2)
    assert found["overlap"].pixels.shape == (13, 30, 30, 3)
    assert found["overlap"].tiling == (3, 4)
