"""A porch for an hour as 32×32 thumbnails, with the truth about every frame. Seeded; only tests use it.

Every frame is drawn as a picture of 256×192 pixels in linear light (walls, boards, a door, a bush, a sky; sun and
clouds; people, a car, a lamp), goes through exposure, the eye's curve, the noise of a sensor, rain, 8 bits and a JPEG,
and is shrunk as the daemon does it. The hour has: light that doubles and halves, the edge of a shadow that wanders
over the wall, clouds, gusts in the bush, rain, snow, jumps of the exposure that take one to three frames, single
frames that are black or white. What counts is who and what is there.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 256, 192
HOUR_S = 3600
Pixels = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Thing:
    """Something that comes, stays and goes."""

    kind: str
    """`person`, `car`, `door`, `lamp`, or `spot`: a small thing."""
    comes_s: int
    goes_s: int
    move_s: int
    """How long its coming takes, and its going."""
    x: float
    """Where it stands: the middle of its foot, relative."""
    area: float
    """The share of the picture it covers."""
    tone: float
    """Its brightness; the wall's is about 0.4."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of what stands there, relative."""
        tall = {"person": 2.2, "car": 0.45}.get(self.kind, 1.0)
        width = math.sqrt(self.area / (math.pi / 4) / tall)
        return width, width * tall

    def there(self, second: int) -> float:
        """How far it has come: 0…1."""
        return float(np.clip(min(second - self.comes_s, self.goes_s - second) / self.move_s, 0.0, 1.0))

    def at(self, second: int) -> float:
        """Where its middle is: who comes walks in from the nearer side, who stands sways a little."""
        if self.kind in ("door", "lamp"):
            return self.x
        outside = -0.25 if self.x < 0.5 else 1.25
        return outside + (self.x - outside) * self.there(second) + 0.004 * math.sin(second * 0.9)

    def seen(self, second: int) -> tuple[float, float]:
        """From where to where it is seen across the picture; the same twice: not at all."""
        if self.kind in ("door", "lamp"):
            return (0.0, self.size[0] * self.there(second))
        left, right = self.at(second) - self.size[0] / 2, self.at(second) + self.size[0] / 2
        there = self.there(second) > 0
        return (min(max(left, 0.0), 1.0), min(max(right, 0.0), 1.0)) if there else (0.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """One second."""

    thumbnail: bytes
    seen: dict[Thing, tuple[float, float]]
    """What is seen, from where to where across the picture."""

    def differs(self, other: Frame) -> float:
        """How much of some thing is in one of the two frames only, at most: 0 nothing, 1 all of it."""
        most = 0.0
        for thing in {*self.seen, *other.seen}:
            (a, b), (c, d) = (frame.seen.get(thing, (0.0, 0.0)) for frame in (self, other))
            both = max(0.0, min(b, d) - max(a, c))
            most = max(most, (b - a + d - c - 2 * both) / thing.size[0])
        return most


@dataclass(frozen=True)
class Weather:
    """What disturbs, each 0…1."""

    clouds: float = 1.0
    wind: float = 1.0
    rain: float = 1.0
    exposure: float = 1.0


@dataclass
class Porch:
    """The generator."""

    seed: int
    seconds: int = HOUR_S
    things: tuple[Thing, ...] | None = None
    """None: an hour with people, a car, the door and the lamp."""
    weather: Weather = Weather()
    dice: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.dice = np.random.default_rng(self.seed)
        self.across, self.down = (
            axis.astype(np.float32)
            for axis in np.meshgrid(np.linspace(0, 1, WIDTH_PX), np.linspace(0, 1, HEIGHT_PX), indexing="xy")
        )
        self.reflectance = self._surfaces()
        self.noises = [self.dice.normal(0, 1, (HEIGHT_PX, WIDTH_PX)).astype(np.float32) for _ in range(8)]
        self.cloud = self._smooth(4, 9, self.dice, (HEIGHT_PX, WIDTH_PX * 4))
        if self.things is None:
            self.things = self._visitors()
        self.jumps = self._exposures()
        self.rains = self._spells(0.25)
        self.gusts = self._spells(0.4)
        self.overcast = self._spells(0.5)
        self.snows = bool(self.dice.random() < 0.4)

    def frames(self) -> Iterator[Frame]:
        """The hour, second by second."""
        assert self.things is not None
        for second in range(self.seconds):
            there = {thing: share for thing in self.things if (share := thing.there(second)) > 0}
            thumbnail = self._thumbnail(self._exposed(self._lit(second, there), second))
            yield Frame(thumbnail, {thing: seen for thing in there if (seen := thing.seen(second))[1] > seen[0]})

    # ---- what is there -----------------------------------------------------------------------------------

    def _surfaces(self) -> Pixels:
        """How bright everything is in even light."""
        scene = 0.35 + 0.15 * self.down
        scene = scene + 0.05 * ((np.floor(self.down * 24) % 2) - 0.5) * (self.down > 0.3)  # boards of the wall
        scene = np.where(self.down < 0.3, 0.7 - 0.3 * self.across, scene)  # sky
        scene = np.where(self.down > 0.8, 0.25 + 0.08 * (np.floor(self.across * 17) % 2), scene)  # floor
        door = (abs(self.across - 0.25) < 0.09) & (self.down > 0.35) & (self.down < 0.85)
        scene = np.where(door, 0.16 + 0.05 * (abs(self.across - 0.25) < 0.05), scene)
        window = (abs(self.across - 0.55) < 0.08) & (abs(self.down - 0.5) < 0.1)
        scene = np.where(window, 0.1 + 0.5 * self.across, scene)
        fine = self._smooth(48, 64, self.dice, (HEIGHT_PX, WIDTH_PX))
        leaves = self._smooth(40, 50, self.dice, (HEIGHT_PX, WIDTH_PX))
        self.bush = (self.across > 0.78) & (self.down > 0.45) & (self.down < 0.9)
        scene = np.where(self.bush, 0.2 + 0.12 * np.sign(leaves - 0.5) * abs(leaves - 0.5) ** 0.5 * 1.4, scene)
        return np.asarray(np.clip(scene * (0.9 + 0.2 * fine), 0.03, 0.95), dtype=np.float32)

    def _visitors(self) -> tuple[Thing, ...]:
        """Who comes in this hour: one after the other, sometimes two at once."""
        things, second = [], 60
        kinds = ["person"] * 14 + ["car"] * 4 + ["door"] * 3 + ["lamp"] * 2
        self.dice.shuffle(kinds)
        for kind in kinds:
            stays = int(self.dice.integers(12, 75))
            moves = {"person": int(self.dice.integers(2, 5)), "car": 3, "door": 1, "lamp": 1}[kind]
            area = {"person": self.dice.uniform(0.05, 0.10), "car": self.dice.uniform(0.12, 0.2)}.get(kind, 0.08)
            x = {"door": 0.25, "lamp": 0.45}.get(kind, float(self.dice.uniform(0.12, 0.88)))
            tone = float(self.dice.choice([0.06, 0.12, 0.75, 0.9]))
            things.append(Thing(kind, second, second + stays + 2 * moves, moves, x, float(area), tone))
            pause = int(self.dice.integers(25, 110))
            second += pause if self.dice.random() < 0.2 else stays + 2 * moves + pause
        return tuple(thing for thing in things if thing.goes_s < self.seconds - 5)

    # ---- light -------------------------------------------------------------------------------------------

    def _lit(self, second: int, there: dict[Thing, float]) -> Pixels:
        """The picture in linear light."""
        scene = self._with_things(self._in_the_wind(second), second, there)
        hour = second / HOUR_S
        light = (
            0.75 + 0.35 * np.sin(2 * np.pi * (hour + self.seed % 7 / 7)) + 0.2 * (self.across - 0.5) * (2 * hour - 1)
        )
        edge = 0.35 + 0.2 * hour  # of the roof's shadow; it wanders over the wall
        light = light * (1 - 0.45 / (1 + np.exp(-(self.down - edge) * 60)) * (self.down > 0.3))
        density = self.weather.clouds * min(1.0, 0.25 + self.overcast[second])
        at = int(second * (2.0 + self.seed % 3)) % (WIDTH_PX * 3)
        light = light * (1 - 0.6 * density * self.cloud[:, at : at + WIDTH_PX])
        for thing in there:
            if thing.kind == "lamp":
                spread = (self.across - thing.x) ** 2 / 0.03 + (self.down - 0.45) ** 2 / 0.06
                light = light + 0.9 * np.exp(-spread)
        return np.asarray(scene * light, dtype=np.float32)

    def _in_the_wind(self, second: int) -> Pixels:
        gust = self.weather.wind * (0.15 + self.gusts[second])
        shift = round(6 * gust * np.sin(second * 1.7 + self.dice.normal(0, 0.5)))
        swayed = np.roll(self.reflectance, shift, axis=1)
        return np.where(self.bush, swayed, self.reflectance)

    def _with_things(self, scene: Pixels, second: int, there: dict[Thing, float]) -> Pixels:
        scene = scene.copy()
        for thing, share in there.items():
            if thing.kind == "door":
                inside = (abs(self.across - 0.25) < 0.08 * share) & (self.down > 0.37) & (self.down < 0.85)
                scene[inside] = 0.55 + 0.2 * (self.down[inside] > 0.6)
            elif thing.kind != "lamp":
                self._stand(scene, thing, second)
        return scene

    def _stand(self, scene: Pixels, thing: Thing, second: int) -> None:
        x, (wide, high) = thing.at(second), thing.size
        middle = (0.93 if thing.kind != "spot" else 0.75) - high / 2
        body = ((self.across - x) / (wide / 2)) ** 2 + ((self.down - middle) / (high / 2)) ** 2 < 1
        lower = body & (self.down > middle + 0.05 * high)
        scene[body] = thing.tone * (0.9 + 0.2 * (np.floor(self.down[body] * 40) % 2))
        scene[lower] = np.clip(1.0 - thing.tone, 0.1, 0.6) if thing.kind != "spot" else thing.tone
        if thing.kind == "person":
            head = ((self.across - x) / 0.03) ** 2 + ((self.down - middle + high / 2) / 0.04) ** 2 < 1
            scene[head] = 0.5

    # ---- the camera --------------------------------------------------------------------------------------

    def _exposed(self, lit: Pixels, second: int) -> Image.Image:
        level = np.clip(lit * self.jumps[second], 0, 1) ** (1 / 2.2) * 255
        level = level + self.noises[int(self.dice.integers(8))] * 4.0
        raining = self.weather.rain * self.rains[second]
        for _ in range(int(self.dice.poisson(70 * raining))):
            x, y = int(self.dice.integers(WIDTH_PX)), int(self.dice.integers(HEIGHT_PX))
            if self.snows:
                level[y : y + 3, x : x + 3] += 90
            else:
                level[y : y + 14, x : x + 1] += 50
        return Image.fromarray(np.clip(level, 0, 255).astype(np.uint8))

    def _thumbnail(self, picture: Image.Image) -> bytes:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=60)
        with Image.open(file) as decoded:
            return decoded.resize((32, 32), Image.Resampling.BOX).tobytes()

    def _exposures(self) -> Pixels:
        """The exposure of every second: steps that take one to three frames, and single black or white frames."""
        level, exposures = 1.0, np.ones(self.seconds, dtype=np.float32)
        second = 0
        while second < self.seconds:
            until = second + int(self.dice.integers(60, 300))
            exposures[second:until] = level
            if self.weather.exposure and until < self.seconds - 4:
                kind = self.dice.random()
                if kind < 0.2:
                    exposures[until] = self.dice.choice([0.0, 60.0])
                    until += 1
                else:
                    after = float(self.dice.uniform(0.6, 1.5))
                    takes = int(self.dice.integers(1, 4))
                    exposures[until : until + takes] = np.linspace(level, after, takes + 1)[1:]
                    level, until = after, until + takes
            second = until
        return exposures

    def _spells(self, share: float) -> Pixels:
        """For every second how strong something is: nothing, then minutes of it, swelling and fading."""
        strength = np.zeros(self.seconds + 600, dtype=np.float32)
        second = int(self.dice.integers(0, 300))
        while second < self.seconds:
            length = int(self.dice.integers(60, 400))
            swell = np.clip(np.minimum(np.arange(length), length - np.arange(length)) / 20, 0, 1)
            strength[second : second + length] = swell * self.dice.uniform(0.4, 1.0)
            second += round(length / share)
        return strength

    @staticmethod
    def _smooth(rows: int, columns: int, dice: np.random.Generator, size: tuple[int, int]) -> Pixels:
        """Noise without hard edges, 0…1."""
        coarse = Image.fromarray((dice.random((rows, columns)) * 255).astype(np.uint8))
        fine = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
        return np.multiply(np.asarray(fine, dtype=np.float32), 1 / 255, dtype=np.float32)
