"""Which cells of the thumbnail lie in areas that somebody has drawn. Pure. A leaf.

An area is a polygon in relative coordinates: 0, 0 is the upper left corner of the picture, 1, 1 the lower right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edge_daemon.messages import THUMBNAIL_PX

Polygon = Sequence[tuple[float, float]]
_FINER = 4
"""A cell is looked at in so many places across and down: half of them have to be inside."""


def cells(regions: Sequence[Polygon], ignored: Sequence[Polygon]) -> tuple[int, ...]:
    """The cells that count, row by row: those in a region (all where there is none) that are not ignored."""
    inside = _places(regions) if regions else [[True] * _SIDE for _ in range(_SIDE)]
    for line, masked in zip(inside, _places(ignored), strict=True):
        line[:] = [place and not mask for place, mask in zip(line, masked, strict=True)]
    blocks = range(0, _SIDE, _FINER)
    shares = [sum(sum(line[x : x + _FINER]) for line in inside[y : y + _FINER]) for y in blocks for x in blocks]
    return tuple(cell for cell, share in enumerate(shares) if 2 * share >= _FINER**2)


_SIDE = THUMBNAIL_PX * _FINER


def _places(polygons: Sequence[Polygon]) -> list[list[bool]]:
    """A finer picture of what is inside of at least one."""
    lines = [[False] * _SIDE for _ in range(_SIDE)]
    for polygon in polygons:
        for number, line in enumerate(lines):
            crossings = _crossings(polygon, (number + 0.5) / _SIDE)
            for enters, leaves in zip(crossings[::2], crossings[1::2], strict=True):
                first, after = (min(_SIDE, max(0, round(x * _SIDE))) for x in (enters, leaves))
                line[first:after] = [True] * (after - first)
    return lines


def _crossings(polygon: Polygon, y: float) -> list[float]:
    """Where its sides cross a level line, from left to right: an even number."""
    return sorted(
        x1 + (y - y1) / (y2 - y1) * (x2 - x1)
        for (x1, y1), (x2, y2) in pairwise([*polygon, polygon[0]])
        if (y1 <= y) != (y2 <= y)
    )
