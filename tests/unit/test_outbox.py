"""The outbox: order, numbers without gaps, both or nothing, whoever pulls the plug."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_daemon.errors import UnavailableError
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a model of a thousand writes need not wait for a disk."""
SOURCES = st.sampled_from(["porch", "gate"])
FILES = st.builds(FileKey, st.sampled_from(["a.jpg", "b/ü.png", "c\udcff.gif"]), st.integers(0, 3), st.integers(0, 3))


class Book(RuleBasedStateMachine):
    """The outbox beside a model of it: lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="outbox-", dir=MEMORY))
        self.outbox = Outbox(self.directory / "state" / "outbox.db")
        self.waiting: list[tuple[str, dict[str, Any]]] = []
        self.dealt_with: dict[tuple[str, str], FileKey] = {}
        self.last_seq: dict[str, int] = {}
        self.rows: set[int] = set()

    @rule()
    def open_again(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.directory / "state" / "outbox.db")

    @rule(source=SOURCES, texts=st.lists(st.text(), max_size=3), file=st.none() | FILES)
    def put(self, source: str, texts: list[str], file: FileKey | None) -> None:
        self.outbox.put(source, [{"caption": text} for text in texts], file)
        for text in texts:
            self.last_seq[source] = self.last_seq.get(source, 0) + 1
            self.waiting.append((source, {"caption": text, "seq": self.last_seq[source]}))
        if file is not None:
            self.dealt_with[source, file.name] = file

    @rule(source=SOURCES)
    def put_what_cannot_be_written(self, source: str) -> None:
        """The first is fine, the second is no JSON: then there is neither, and the file is not dealt with."""
        with pytest.raises(TypeError):
            self.outbox.put(source, [{"caption": "fine"}, {"caption": object()}], FileKey("z.jpg", 1, 1))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        self.outbox.delete(self.outbox.head(index + 1)[index].row)
        del self.waiting[index]

    @rule(source=SOURCES, files=st.lists(FILES, max_size=5))
    def ask_what_is_wanted(self, source: str, files: list[FileKey]) -> None:
        expected = [self.dealt_with.get((source, file.name)) != file for file in files]
        assert self.outbox.wanted(source, files) == expected
        assert self.outbox.wanted(source, [FileKey("z.jpg", 1, 1)]) == [True]

    @invariant()
    def everything_waits_in_order(self) -> None:
        entries = self.outbox.head(1000)
        assert [(entry.source, entry.body) for entry in entries] == self.waiting
        assert len(self.outbox) == len(self.waiting)
        rows = [entry.row for entry in entries]
        assert rows == sorted(set(rows))
        # a row number is never given twice, not even when the last row was deleted
        assert all(row > max(self.rows, default=0) for row in set(rows) - self.rows)
        self.rows.update(rows)

    @rule(count=st.integers(0, 5), behind=st.integers(0, 5))
    def look_at_some(self, count: int, behind: int) -> None:
        entries = self.outbox.head(1000)
        row = entries[behind - 1].row if 0 < behind <= len(entries) else 0
        expected = [entry for entry in entries if entry.row > row][:count]
        assert self.outbox.head(count, row) == expected

    def teardown(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.directory)


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=15, stateful_step_count=20, deadline=None, database=None)

WRITER = """\
import resource, signal, sys
from pathlib import Path
from edge_daemon.errors import UnavailableError
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox
outbox, first, limit_bytes = Outbox(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
if limit_bytes:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
for number in range(first, 100_000):
    results = [{"number": number, "half": half, "padding": "x" * 500} for half in (1, 2)]
    try:
        outbox.put("porch", results, FileKey(f"{number}.jpg", number, number))
    except UnavailableError as error:
        print("full", error, flush=True)
        break
    print(number, flush=True)
"""
"""Puts two results and a file, says so, and so on for ever."""


def writer(path: Path, first: int, limit_bytes: int = 0) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WRITER, str(path), str(first), str(limit_bytes)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def check(path: Path, promised: int) -> int:
    """What `put` returned for is there, and of each picture all or nothing; returns how many there are."""
    outbox = Outbox(path)
    entries = outbox.head(1_000_000)
    kept = len(entries) // 2
    assert kept >= promised
    assert [(e.body["number"], e.body["half"]) for e in entries] == [(n, h) for n in range(kept) for h in (1, 2)]
    assert [entry.body["seq"] for entry in entries] == list(range(1, 2 * kept + 1))
    files = [FileKey(f"{number}.jpg", number, number) for number in range(kept + 5)]
    assert outbox.wanted("porch", files) == [False] * kept + [True] * 5
    outbox.close()
    return kept


def test_a_writer_that_is_killed_loses_nothing_it_was_promised(tmp_path: Path) -> None:
    path, kept = tmp_path / "outbox.db", 0
    for extra in (1, 2, 7, 30):
        child = writer(path, kept)
        assert child.stdout is not None
        promised = kept
        for _ in range(extra):
            promised = int(child.stdout.readline()) + 1
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        promised = int(rest[-1]) + 1 if rest else promised
        kept = check(path, promised)
        assert kept <= promised + 1


def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond the limit, as a full disk does."""
    path = tmp_path / "outbox.db"
    output = writer(path, 0, 400_000).communicate()[0].splitlines()
    assert output[-1].startswith(f"full {path}: a result cannot be kept: ")
    promised = int(output[-2]) + 1
    assert promised > 10
    assert check(path, promised) == promised
    # and with room again it goes on where it was
    child = writer(path, promised)
    assert child.stdout is not None
    assert int(child.stdout.readline()) == promised
    child.kill()
    child.communicate()
    check(path, promised + 1)


def test_a_torn_write_ahead_log_costs_only_what_was_being_written(tmp_path: Path) -> None:
    """As after a power cut in the middle of a write: the end of the log is missing."""
    path = tmp_path / "outbox.db"
    child = writer(path, 0)
    assert child.stdout is not None
    for _ in range(10):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    log = path.with_name("outbox.db-wal")
    whole = check(copy(path, tmp_path / "whole"), 10)
    kept = [whole]
    for cut in (1, 4096, 40_000):  # the first may hit no more than what was being written when the writer was killed
        torn = copy(path, tmp_path / f"torn-{cut}")
        os.truncate(torn.with_name("outbox.db-wal"), log.stat().st_size - cut)
        kept.append(check(torn, 1))
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < whole


def copy(path: Path, directory: Path) -> Path:
    """The database and its log, elsewhere."""
    directory.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.with_name(name), directory / name)
    return directory / path.name


@pytest.mark.parametrize(
    "file",
    [
        FileKey(b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"), 1, 1),
        FileKey("year 3000.jpg", 32_503_680_000 * 10**9, 1),
        FileKey("long ago.jpg", -(10**25), 2**63),
        FileKey("\0\n'; DROP TABLE outbox;--.jpg", 1, 1),
        FileKey("\ud800.jpg", 1, 1),
    ],
    ids=["not UTF-8", "year 3000", "long ago", "odd", "lone surrogate"],
)
def test_any_file_can_be_dealt_with(tmp_path: Path, file: FileKey) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    assert outbox.wanted("porch", [file]) == [True]
    outbox.put("porch", [{"file": file.name, "caption": "A cat."}], file)
    assert outbox.wanted("porch", [file]) == [False]
    assert outbox.wanted("gate", [file]) == [True]
    assert outbox.wanted("porch", [FileKey(file.name, file.mtime_ns + 1, file.size_bytes)]) == [True]
    assert outbox.head(1)[0].body == {"file": file.name, "caption": "A cat.", "seq": 1}
    outbox.close()


def test_no_two_names_are_taken_for_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    names = ["é", "e\u0301", "É", b"\xe9".decode("utf-8", "surrogateescape"), "\udced\udcb3\udca9", "é ", ""]
    for number, name in enumerate(names):
        assert outbox.wanted("porch", [FileKey(name, 1, 1)]) == [True], number
        outbox.put("porch", [], FileKey(name, 1, 1))
    outbox.close()


def test_each_source_counts_for_itself_and_never_back(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for _ in range(3):
        outbox = Outbox(path)
        outbox.put("porch", [{}, {}], None)
        outbox.put("gate", [{}], None)
        found = [(entry.source, entry.body["seq"]) for entry in outbox.head(9)]
        for entry in outbox.head(9):
            outbox.delete(entry.row)
        outbox.close()
    assert found == [("porch", 5), ("porch", 6), ("gate", 3)]


def test_what_is_no_database_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_text("my diary, " * 1000)
    with pytest.raises(UnavailableError, match=r"outbox\.db: the outbox cannot be opened: file is not a database"):
        Outbox(path)
    assert path.read_text() == "my diary, " * 1000


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "outbox.db", tmp_path / "directory"):
        with pytest.raises(UnavailableError, match=str(path)):
            Outbox(path)


def test_what_put_returned_for_is_on_the_disk(tmp_path: Path) -> None:
    """Measured at SQLite itself: with less than synchronous=FULL (2) a power cut may take the last results."""
    outbox = Outbox(tmp_path / "outbox.db")
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert outbox._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    outbox.put("porch", [{"caption": "A cat."}], None)
    with sqlite3.connect(tmp_path / "outbox.db") as other:
        assert other.execute("SELECT count(*) FROM outbox").fetchone() == (1,)
    other.close()
    outbox.close()
