"""Has the scene changed, or only the light? Compares grey thumbnails. Pure Python, a leaf; about 2 ms a look.

The issue's words for this are the difference hash and the mean absolute difference. Both were tried, and both fail
outdoors whatever their threshold (tests/unit/test_gate.py prints the figures): one number for the whole picture is
larger for a cloud than for a person. So cells are compared, and light is taken out before:

* Exposure: one gain and one offset for the whole picture, fitted so that cells that do not follow have no say.
* Soft light (clouds, shadows of them, a lamp's glow): the mean of the 7×7 cells around each cell. What is left over
  is structure. Cells that look changed have no say in that mean, or a thing would hide itself; of a large plain one
  the edges remain.
* Noise: each cell has a level of its own, the median of how its rest changes from look to look, and has to exceed
  NOISES times the largest of its neighbourhood. So leaves that always move are let be.
* Rain and snow: changed cells have to touch each other; AREA_CELLS of them make a change.
* Soft light that comes at once is a lamp, and a change: more than JUMP times the contrast within one look, over an
  area, and not over the whole picture.
* Slow changes (the edge of a shadow that wanders): the reference follows, with a time constant of FOLLOW_S, while
  nothing has changed. What has changed is never followed: it is still a change an hour later.

What it cannot see: things of the brightness of what is behind them, and less than AREA_CELLS of any.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from copy import copy
from itertools import accumulate, compress
from operator import add, mul, sub
from typing import Literal

from edge_daemon.messages import THUMBNAIL_PX

SIDE = THUMBNAIL_PX
CELLS = SIDE**2
CONTRAST = (24.0, 20.0, 17.0, 14.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0)
"""Levels of grey (of 256) by which a cell has to differ, for sensitivity 1 … 10."""
AREA_CELLS = (32, 24, 18, 13, 10, 8, 6, 5, 4, 3)
"""So many such cells, side by side, for sensitivity 1 … 10: of 1024, so 10 are 1 % of the picture."""
NOISES = 4.0
"""Of the median change from look to look. A sensor's noise exceeds it once in a hundred looks, and alone."""
JUMP = 2.0
JUMP_AREAS = 3
"""A lamp's glow is soft: it has to be stronger and larger than a thing."""
LOOKS_A_LIMIT = 4
"""Noise changes slowly: what follows from it is worked out at every fourth look."""
FOLLOW_S = 120.0
FLAT, NO_LONGER_FLAT = 6, 12
"""A picture with fewer levels between its dark and its bright parts shows nothing: black, white, or one colour. After
such a caption more is asked for, or a night would pass back and forth with its noise."""
FLAT_LOOKS = 3
"""After so many flat pictures in a row this is how it is; one or two are the camera finding its exposure."""
LIGHT = 6.0
"""A mean absolute difference that would have been a change without all this."""

_DARK, _BRIGHT = 5, 250
"""Below and above, a sensor tells nothing."""
_RADIUS, _WIDER = 3, 4
"""Of the mean around a cell; the wider one is for that without suspects, which has to see past a thing."""
_LEAST_KNOWN = 8
"""A mean of fewer cells than this is none."""
_IN_REACH = [min(SIDE, at + _RADIUS + 1) - max(0, at - _RADIUS) for at in range(SIDE)]
_COUNTS = [float(rows * columns) for rows in _IN_REACH for columns in _IN_REACH]
"""Of how many cells the mean around each cell is: 49, fewer at the edges."""
_FITTED = [cell for cell in range(CELLS) if (cell + cell // SIDE) % 3 == 0]
"""Enough for two numbers, at a third of the time."""
_LEAST_FITTED = 50
_STRANGE = 8.0
"""A median error that no light makes: most of the picture is another one, as always where most is an ignored screen."""
_QUIETEST, _NOISE_AT_FIRST = 0.4, 2.0

Verdict = Literal["change", "light", "unchanged"]
Cells = Sequence[float]
Light = tuple[float, float]
"""Gain and offset."""
_AS_IT_IS: Light = (1.0, 0.0)


class Scene:
    """What a camera sees while nothing happens, and how restless each part of it is."""

    def __init__(self, counted: Collection[int], sensitivity: int) -> None:
        self._published: bytes = bytes(CELLS)
        self._reference: Cells = ()
        """Empty: there is nothing to compare with."""
        self._reference_is_flat = False
        self._flat_looks = self._unfit_looks = 0
        self._noise: list[float] = [_NOISE_AT_FIRST] * CELLS
        self._learned = 0
        self._rest_before: Cells = ()
        self._calm: tuple[Light, bytes] | None = None
        """The light and the picture of the last look at which nothing had changed, since the reference."""
        self._looked_s: float | None = None
        self._seen = b""
        self.change_rules(counted, sensitivity)

    def change_rules(self, counted: Collection[int], sensitivity: int) -> None:
        """Which cells count, and how small a change."""
        self._counted = sorted(counted)
        self._ignored = sorted(set(range(CELLS)).difference(counted))
        self._contrast = CONTRAST[sensitivity - 1]
        # In a small region what happens is small.
        self._known_limits: list[float] = []
        self._area = max(1, min(AREA_CELLS[sensitivity - 1], len(self._counted) // 3))

    def refer(self, thumbnail: bytes) -> None:
        """Compare with this one from now on."""
        self._published, self._reference = thumbnail, list(map(float, thumbnail))
        self._reference_is_flat = _is_flat(thumbnail, FLAT)
        # Under this reference nothing is left of the frame itself; of another one it is not known what is.
        self._rest_before = [0.0] * CELLS if thumbnail == self._seen else ()
        self._calm = None

    def look(self, thumbnail: bytes, now_s: float) -> Verdict:
        """What has become of the scene since the reference; any scene is a change from none."""
        passed_s = 0.0 if self._looked_s is None else max(0.0, now_s - self._looked_s)
        self._looked_s, self._seen = now_s, thumbnail
        flat = _is_flat(thumbnail, NO_LONGER_FLAT if self._reference_is_flat else FLAT)
        if flat or self._reference_is_flat or not self._reference:
            return self._without_structure(flat)
        self._flat_looks = 0
        light = self._light(thumbnail)
        self._unfit_looks = 0 if light else self._unfit_looks + 1
        if 0 < self._unfit_looks < FLAT_LOOKS:
            return "light"
        # A lamp in the dark: what is black on both tells no light, and is the same nevertheless.
        return self._compare(thumbnail, light or _AS_IT_IS, passed_s)

    def look_back(self, thumbnail: bytes) -> Verdict:
        """What a frame that was looked at before is beside the reference of now; nothing is learned of it."""
        return copy(self).look(thumbnail, self._looked_s or 0.0)

    def _light(self, thumbnail: bytes) -> Light | None:
        """Told by the whole picture, as somebody may fill all that counts; else by what counts, if it is enough."""
        light, error = _fit(self._reference, thumbnail, _FITTED)
        if error > _STRANGE and self._ignored:
            own, _ = _fit(self._reference, thumbnail, self._counted, _LEAST_KNOWN)
            return own or (light and _AS_IT_IS)  # what lies around a keyhole says nothing of it
        return light

    def _without_structure(self, flat: bool) -> Verdict:
        """There is nothing to compare: one of the two pictures is flat, or there is only one."""
        if self._reference_is_flat and flat:
            return "unchanged"
        self._flat_looks = self._flat_looks + 1 if flat else 0
        return "light" if 0 < self._flat_looks < FLAT_LOOKS else "change"

    def _compare(self, thumbnail: bytes, light: Light, passed_s: float) -> Verdict:
        gain, offset = light
        lit = [gain * cell + offset for cell in self._reference]
        expected = [0.0 if cell < 0.0 else 255.0 if cell > 255.0 else cell for cell in lit]
        trusted = self._without_strangers(thumbnail, expected)
        means = _Means(trusted)
        rest = means.rest(thumbnail, expected)
        limits = self._limits()
        changed = self._has_new_structure(thumbnail, expected, rest, limits, trusted)
        changed = changed or self._has_jumped(thumbnail, light, expected, means)
        self._learn_noise(rest)
        if changed:
            return "change"
        self._calm = (light, thumbnail)
        self._follow(thumbnail, light, passed_s)
        difference = sum(abs(thumbnail[cell] - self._published[cell]) for cell in self._counted)
        return "light" if difference > LIGHT * len(self._counted) else "unchanged"

    def _without_strangers(self, thumbnail: bytes, expected: Cells) -> list[float]:
        """1 for the cells that have a say in what light there is; 0 where something else is, and nobody cares."""
        trusted = [1.0] * CELLS
        for cell in self._ignored:
            if abs(thumbnail[cell] - expected[cell]) > self._contrast:
                trusted[cell] = 0.0
        return trusted

    def _has_new_structure(
        self, thumbnail: bytes, expected: Cells, rest: Cells, limits: Cells, trusted: list[float]
    ) -> bool:
        suspects = [cell for cell in self._counted if 2 * abs(rest[cell]) > limits[cell]]
        if len(suspects) < self._area:
            return False
        for cell in suspects:
            trusted[cell] = 0.0
        rest = _Means(trusted, _WIDER).rest(thumbnail, expected)
        changed = {cell for cell in self._counted if abs(rest[cell]) > limits[cell]}
        return _touching(changed, self._area)

    def _has_jumped(self, thumbnail: bytes, light: Light, expected: Cells, means: _Means) -> bool:
        """Whether soft light has come or gone at once, and not everywhere."""
        gain, shift, before = 1.0, 0.0, expected
        if self._calm is not None:
            (gain_before, offset_before), before = self._calm
            gain = light[0] / gain_before
            shift = light[1] - gain * offset_before
        differences = means.sums([now - gain * was - shift for now, was in zip(thumbnail, before, strict=True)])
        jump = JUMP * self._contrast
        # Where exposure has cut off the bright or the dark, the fit says nothing.
        cells = sum(
            abs(differences[cell]) > jump * means.counts[cell] and 25 < expected[cell] < 235 for cell in self._counted
        )
        return cells >= JUMP_AREAS * self._area

    def _follow(self, thumbnail: bytes, light: Light, passed_s: float) -> None:
        """Let the reference become what is seen, little by little, in its own light."""
        gain, offset = light
        keep = math.exp(-passed_s / FOLLOW_S)
        share = (1.0 - keep) / gain
        self._reference = [
            keep * cell + share * (seen - offset) if _DARK < seen < _BRIGHT else cell
            for cell, seen in zip(self._reference, thumbnail, strict=True)
        ]

    def _learn_noise(self, rest: Cells) -> None:
        """Move the level of each cell towards the median of its changes: as often up as down is where it stays.

        Also while the scene differs: a storm that begins is captioned a few times and is noise then, while somebody
        who stands there does not change from look to look.
        """
        if self._rest_before:
            up = 1.0 + max(0.04, 0.3 / (1.0 + self._learned / 5))
            down = 1.0 / up
            self._noise = [
                noise * up if abs(now - before) > noise else noise * down if noise > _QUIETEST else noise
                for noise, now, before in zip(self._noise, rest, self._rest_before, strict=True)
            ]
            self._learned += 1
        self._rest_before = rest

    def _limits(self) -> list[float]:
        """By how much each cell has to differ: leaves move, so the largest noise of its 3×3 cells counts."""
        if not self._known_limits or self._learned % LOOKS_A_LIMIT == 0:
            noise = self._noise
            across = list(map(max, noise, [*noise[1:], 0.0], [0.0, *noise[:-1]]))
            blank = [0.0] * SIDE
            around = map(max, across, across[SIDE:] + blank, blank + across[:-SIDE])
            self._known_limits = [max(self._contrast, NOISES * level) for level in around]
        return self._known_limits


def _sums(cells: Cells, radius: int = _RADIUS) -> list[float]:
    """The sums over the square of cells around each cell, as far as it is in the picture."""
    above: list[float] = [0.0] * (SIDE + 1)
    table = [above]
    for start in range(0, CELLS, SIDE):
        above = list(map(add, above, accumulate(cells[start : start + SIDE], initial=0.0)))
        table.append(above)
    sums: list[float] = []
    for row in range(SIDE):
        rows = list(map(sub, table[min(SIDE, row + radius + 1)], table[max(0, row - radius)]))
        right = rows[radius + 1 :] + rows[-1:] * radius
        left = rows[:1] * radius + rows[: SIDE - radius]
        sums.extend(map(sub, right, left))
    return sums


class _Means:
    """The mean around each cell, of those cells that are trusted."""

    def __init__(self, trusted: Cells, radius: int = _RADIUS) -> None:
        self._radius = radius
        self._trusted = trusted if 0.0 in trusted else None
        self.counts = _COUNTS if radius == _RADIUS and self._trusted is None else _sums(trusted, radius)
        """Of how many cells each is."""

    def sums(self, cells: Cells) -> Cells:
        """The means, times `counts`."""
        return _sums(cells if self._trusted is None else list(map(mul, self._trusted, cells)), self._radius)

    def rest(self, seen: Cells, expected: Cells) -> list[float]:
        """What is left of each cell's difference without soft light; 5 more levels keep the dark quiet."""
        sums = zip(self.sums(seen), self.sums(expected), self.counts, strict=True)
        factors = [
            (total + 5 * count) / (expected_total + 5 * count) if count >= _LEAST_KNOWN else 1.0
            for total, expected_total, count in sums
        ]
        return list(map(sub, seen, map(mul, expected, factors)))


def _is_flat(thumbnail: bytes, least: int) -> bool:
    levels = sorted(thumbnail)
    return levels[-11] - levels[10] < least


def _fit(
    reference: Cells, thumbnail: bytes, fitted: Sequence[int], least: int = _LEAST_FITTED
) -> tuple[Light | None, float]:
    """Gain and offset from one to the other by least squares, thrice, each time without what does not follow.

    And the median error that is left. None where fewer than `least` cells tell anything.
    """
    pairs = [(reference[cell], thumbnail[cell]) for cell in fitted if _DARK < thumbnail[cell] < _BRIGHT]
    pairs = [(cell, level) for cell, level in pairs if _DARK < cell < _BRIGHT]
    if len(pairs) < least:
        return None, math.inf
    was, seen = [cell for cell, _ in pairs], [level for _, level in pairs]
    gain, offset = _line(was, seen)
    for _ in range(2):
        errors = [abs(level - gain * cell - offset) for cell, level in zip(was, seen, strict=True)]
        most = max(3.0, 2.5 * sorted(errors)[len(errors) // 2])
        follows = [error <= most for error in errors]
        if all(follows) or 2 * sum(follows) < least:
            break
        was, seen = list(compress(was, follows)), list(compress(seen, follows))
        gain, offset = _line(was, seen)
    errors = sorted(abs(level - gain * cell - offset) for cell, level in pairs)
    return (gain, offset), errors[len(errors) // 2]


def _line(was: Cells, seen: Cells) -> Light:
    number, total, total_seen = len(was), sum(was), sum(seen)
    spread = sum(map(mul, was, was)) - total * total / number
    gain = 1.0
    if spread > 9 * number:  # else there is too little in it to tell a gain from an offset
        gain = min(5.0, max(0.2, (sum(map(mul, was, seen)) - total * total_seen / number) / spread))
    return gain, (total_seen - gain * total) / number


def _touching(cells: set[int], enough: int) -> bool:
    """Whether so many of them hang together, side by side. Empties the set."""
    while cells:
        ahead, found = [cells.pop()], 0
        while ahead:
            cell = ahead.pop()
            found += 1
            column = cell % SIDE
            beside = (cell - SIDE, cell + SIDE, cell - 1 if column else -1, cell + 1 if column < SIDE - 1 else -1)
            touched = cells.intersection(beside)
            cells -= touched
            ahead.extend(touched)
        if found >= enough:
            return True
    return False
