"""A folder whose files come and go for years: what was dealt with is known as long as it is there."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from edge_daemon import rounds
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox

KEPT = 40


class Folder:
    """Files by their names, and an outbox that is asked and told as by its source."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.files: dict[str, FileKey] = {}
        self.captioned: list[FileKey] = []
        self.asked: list[str] = []
        self._path = path
        self._doubtful: list[str] = []
        self.outbox = Outbox(path)

    def come(self, *names: str) -> None:
        """New files: what the grabber offers and the daemon does then."""
        fresh = [FileKey(name, 1, 1) for name in names]
        self.files |= {file.name: file for file in fresh}
        self.outbox.forget(self.name, [name for name in self._doubtful if name not in self.files])
        flags = self.outbox.wanted(self.name, fresh)
        self._doubtful = self.outbox.doubtful(self.name, sum(flags))
        self.asked += self._doubtful
        for file, wanted in zip(fresh, flags, strict=True):
            if wanted:
                self.captioned.append(file)
                self.outbox.put(self.name, [], file)

    def start_again(self) -> None:
        """Another life of the daemon, in which all files are offered once."""
        self.outbox.close()
        self._doubtful = []
        self.outbox = Outbox(self._path)
        self.come(*self.files)

    def marks(self) -> int:
        """Rows of the table."""
        self.outbox.close()
        with closing(sqlite3.connect(self._path)) as db:
            (count,) = db.execute("SELECT count(*) FROM files").fetchone()
        self.outbox = Outbox(self._path)
        return int(count)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(rounds, "KEPT", KEPT)
    return Folder(tmp_path / "outbox.db", "porch")


@pytest.mark.parametrize(
    ("names", "starts_every", "most"),
    [("in order", 400, 2 * 70), ("at random", 400, 2 * 70), ("at random", 15, 8 * 70)],
)
def test_marks_of_files_that_are_gone_are_forgotten_and_others_are_not(
    folder: Folder, names: str, starts_every: int, most: int
) -> None:
    """60 files stay, 3000 come and go, and the daemon is started again and again, if need be before it is through."""
    dice = random.Random(5)
    staying = [f"!stays/{number}.jpg" for number in range(60)]
    folder.come(*staying)
    for number in range(3000):
        order = number if names == "in order" else dice.randrange(10**9)
        folder.come(f"{order:09}-\udcff{number}.jpg")
        if len(folder.files) > 70:
            del folder.files[next(name for name in folder.files if name not in staying)]
        if number % starts_every == 0:
            folder.start_again()
    assert len(folder.captioned) == 60 + 3000, "each once"
    assert len({file.name for file in folder.captioned}) == 60 + 3000
    print(f"\n{folder.marks()} marks of {len(folder.files)} files")
    assert folder.marks() <= most + KEPT
    assert folder.outbox.wanted("porch", [FileKey(name, 1, 1) for name in staying]) == [False] * 60


def test_while_there_are_few_nothing_is_asked_and_nothing_forgotten(folder: Folder) -> None:
    for number in range(KEPT):
        folder.come(f"{number}.jpg")
        folder.files.clear()
    for size_bytes in range(2, 100):
        folder.outbox.put("porch", [], FileKey("0.jpg", 1, size_bytes))
        assert folder.outbox.doubtful("porch", 1) == [], "one file that is written again and again is one file"
    assert (folder.asked, folder.marks()) == ([], KEPT)
    folder.come("one.jpg")
    folder.come("two.jpg")
    assert len(folder.asked) == rounds.CHECKED


def test_many_new_files_at_once_make_many_short_questions(folder: Folder) -> None:
    folder.come(*(f"{number}.jpg" for number in range(500)))
    folder.files.clear()
    folder.come(*(f"again-{number}.jpg" for number in range(500)))
    assert len(folder.asked) == rounds.MOST
    for _ in range(15):  # files that are known already cost nothing, and pay what is due
        folder.come("again-1.jpg")
    assert len(folder.asked) == rounds.CHECKED * 500


def test_another_source_has_its_own_files(folder: Folder) -> None:
    folder.outbox.put("yard", [], FileKey("a.jpg", 1, 1))
    folder.come(*(f"{number}.jpg" for number in range(500)))
    folder.files.clear()
    for number in range(600):
        folder.come(f"again-{number}.jpg")
    assert "a.jpg" not in folder.asked
    assert folder.outbox.wanted("yard", [FileKey("a.jpg", 1, 1)]) == [False]


def test_a_file_that_was_away_and_is_back_is_a_new_one_at_once(folder: Folder) -> None:
    file = FileKey("a.jpg", 1, 1)
    folder.outbox.put("porch", [], file)
    folder.outbox.forget("porch", ["a.jpg"])
    assert folder.outbox.wanted("porch", [file]) == [True], "before anything is written"
    folder.outbox.put("porch", [], file)
    assert folder.outbox.wanted("porch", [file]) == [False]
    assert folder.marks() == 1
