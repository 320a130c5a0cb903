"""Pictures that arrive in the watched folders at random, in all the ways in which files arrive; bad ones among them.

It keeps the book of what must come of them: the id of every result, by the daemon's own rule, of every good picture
that was put there whole.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.messages import FileKey, Frame, Task
from edge_daemon.results import Origin, result_id
from tests import hostile
from tests.chaos.evidence import Expected

NODE = "chaos"
QUESTION = "How many shapes are there?"
CAPTION = Task("caption", "caption", "short")
TASKS: dict[str, list[Task]] = {"porch": [CAPTION], "yard": [CAPTION, Task("count", "query", QUESTION)]}
"""What each source asks of a picture; the configuration says the same."""
SCENES, SCENES_SEED = 40, 1
"""The same in every run, as the demo's model reads all of these right; of 200 in five stocks it misread one."""
MOST_WAITING = 60
"""Pictures without a result; more are not put before some have come, so that the end of the run is in sight."""
LONGEST_NAME_BYTES = 255
END_BYTES = 16
"""Of a file, in which there may be no pixels any more."""


@dataclass(frozen=True)
class Stock:
    """What can be put into a folder."""

    good: list[tuple[Path, str]]
    """Drawn scenes and their captions."""
    odd: list[Path]
    """Good pictures of odd kinds and names; nobody knows their caption."""
    bad: list[Path]

    @classmethod
    def make(cls, directory: Path) -> Stock:
        """Draw and write all of it."""
        folder = directory / "hostile"
        folder.mkdir(parents=True)
        cases = [case for case in hostile.make(folder) if movable(folder / case.name)]
        return cls(
            good=sample_pictures(directory / "scenes", SCENES, SCENES_SEED),
            odd=[folder / case.name for case in cases if not case.reason],
            bad=[folder / case.name for case in cases if case.reason],
        )


def movable(path: Path) -> bool:
    """Whether it is the same thing under another name: no folder, no link that says where it is, no endless name."""
    mode = path.lstat().st_mode
    relative = stat.S_ISLNK(mode) and not os.path.isabs(os.readlink(path))
    fits = len(os.fsencode(path.name)) + len("00000-") <= LONGEST_NAME_BYTES
    return fits and not relative and not stat.S_ISDIR(mode) and not stat.S_ISSOCK(mode)


def put(origin: Path, place: Path) -> None:
    """The same thing at another place, with a date of now."""
    mode = origin.lstat().st_mode
    if stat.S_ISFIFO(mode):
        os.mkfifo(place)
    elif stat.S_ISLNK(mode):
        place.symlink_to(os.readlink(origin))
    else:
        shutil.copyfile(origin, place)


@dataclass
class Feeder:
    """Feeds two folders until it is told to stop."""

    folders: dict[str, Path]
    stock: Stock
    dice: random.Random
    results: Callable[[], set[str]]
    """Ids of the results that have come."""
    expected: dict[str, Expected] = field(default_factory=dict)
    hostile: dict[str, str] = field(default_factory=dict)
    """What the journal says of each bad file, and its name."""
    put_count: int = 0

    def __post_init__(self) -> None:
        self.at_rest = {source: asyncio.Lock() for source in self.folders}
        """Held while a file is being put into the folder, and by whoever moves the folder."""

    async def feed(self) -> None:
        """One arrival after the other, for ever; slow times and busy ones."""
        per_s = 1.0
        while True:
            if self.dice.random() < 0.1:
                per_s = self.dice.choice((0.3, 1.0, 3.0))
            await asyncio.sleep(min(self.dice.expovariate(per_s), 5.0))
            if len(self.expected.keys() - self.results()) < MOST_WAITING:
                await self.arrive()

    async def arrive(self) -> None:
        """Something comes into one of the folders, in some way."""
        source = self.dice.choice(list(self.folders))
        way = self.dice.choices((self._renamed, self._copied, self._slowly, self._burst, self._bad), (4, 3, 3, 1, 2))[0]
        async with self.at_rest[source]:
            await way(source)

    async def last(self) -> None:
        """One more good picture for each source: its newest result is then younger than all that was broken."""
        for source in self.folders:
            async with self.at_rest[source]:
                await self._renamed(source)

    def _draw(self) -> tuple[Path, str]:
        """A picture from the stock, and its caption if it is known."""
        if self.dice.random() < 0.15:
            return self.dice.choice(self.stock.odd), ""
        return self.dice.choice(self.stock.good)

    def _place(self, source: str, name: str) -> Path:
        """A new name in the folder or somewhere below it."""
        self.put_count += 1
        below = self.dice.choice(("", "", "", "day-1", "day-2/evening", f"new-{self.put_count}"))
        folder = self.folders[source] / below
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.put_count:05d}-{name}"

    def _expect(self, source: str, place: Path, truth: str) -> None:
        """Write down what must come of a picture that is whole now."""
        info = place.stat()
        name = str(place.relative_to(self.folders[source]))
        key = FileKey(name, info.st_mtime_ns, info.st_size)
        frame = Frame(info.st_mtime, 1, 1, 1, 1, "", 0.0, 0.0, key, b"")
        for task in TASKS[source]:
            known = truth if task.kind == "caption" else ""
            self.expected[result_id(Origin(NODE, source, frame, "file", 0.0), task)] = Expected(source, name, known)

    async def _renamed(self, source: str) -> None:
        picture, truth = self._draw()
        place = self._place(source, picture.name)
        part = place.with_name(f".{self.put_count:05d}.part")
        put(picture, part)
        part.rename(place)
        self._expect(source, place, truth)

    async def _copied(self, source: str) -> None:
        picture, truth = self._draw()
        place = self._place(source, picture.name)
        put(picture, place)
        self._expect(source, place, truth)

    async def _slowly(self, source: str) -> None:
        """In pieces, sometimes with a rest that is longer than the time after which a file is taken for complete.

        Scenes only: of some odd pictures a part is a whole picture, too.
        """
        picture, truth = self.dice.choice(self.stock.good)
        place, data = self._place(source, picture.name), picture.read_bytes()
        cuts = sorted(self.dice.randrange(len(data) - END_BYTES) for _ in range(self.dice.randint(1, 4)))
        with place.open("wb") as file:
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                file.write(data[start:end])
                file.flush()
                await asyncio.sleep(self.dice.choice((0.02, 0.1, 0.6)))
        self._expect(source, place, truth)

    async def _burst(self, source: str) -> None:
        for _ in range(self.dice.randint(4, 9)):
            await self._renamed(source)

    async def _bad(self, source: str) -> None:
        bad = self.dice.choice(self.stock.bad)
        place = self._place(source, bad.name)
        put(bad, place)
        shown = str(place).encode("utf-8", "backslashreplace").decode()
        self.hostile[f"source {source}: {shown!r}: "] = place.name
