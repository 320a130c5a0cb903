"""The outbox: order, numbers without gaps, both or nothing, whoever pulls the plug."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_daemon.book import LAYOUT, Entry, entry_of, packed
from edge_daemon.clock import Stamp
from edge_daemon.errors import UnavailableError
from edge_daemon.messages import FileKey
from edge_daemon.outbox import CHUNK, EXPIRE_EVERY_S, RETRY_S, Limits, Outbox
from edge_daemon.units import DAY_S
from tests.clock import Clock

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
        self.rows.clear()  # nobody remembers row numbers over a restart

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
        self.outbox.delete([self.outbox.head(index + 1)[index]])
        del self.waiting[index]

    @rule(source=SOURCES, files=st.lists(FILES, max_size=5))
    def ask_what_is_wanted(self, source: str, files: list[FileKey]) -> None:
        expected = [self.dealt_with.get((source, file.name)) != file for file in files]
        assert self.outbox.wanted(source, files) == expected
        assert self.outbox.wanted(source, [FileKey("z.jpg", 1, 1)]) == [True]

    @rule(source=SOURCES, files=st.lists(FILES, max_size=3))
    def forget(self, source: str, files: list[FileKey]) -> None:
        self.outbox.forget(source, [file.name for file in files])
        for file in files:
            self.dealt_with.pop((source, file.name), None)

    @invariant()
    def everything_waits_in_order(self) -> None:
        entries = self.outbox.head(1000)
        assert [(entry.source, entry.body) for entry in entries] == self.waiting
        assert len(self.outbox) == len(self.waiting)
        assert self.outbox.size_bytes == sum(len(packed(body)) for _, body in self.waiting)
        assert not self.outbox.problem
        rows = [entry.row for entry in entries]
        assert rows == sorted(set(rows))
        assert all(row > max(self.rows, default=0) for row in set(rows) - self.rows), "a row number is not given twice"
        assert self.outbox.last_row() >= max(rows, default=0)
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
import os, resource, signal, sys
from pathlib import Path
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox
outbox, first, limit_bytes = Outbox(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
if limit_bytes:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
for number in range(first, 100_000):
    results = [{"number": number, "half": half, "padding": os.urandom(400).hex()} for half in (1, 2)]
    outbox.put("porch", results, FileKey(f"{number}.jpg", number, number))
    if outbox.problem:
        print("full", outbox.problem, flush=True)
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


def test_when_nothing_waits_any_more_it_is_told_once(tmp_path: Path) -> None:
    told: list[int] = []
    outbox = Outbox(tmp_path / "outbox.db", on_change=lambda: told.append(len(outbox)))
    outbox.put("porch", [{"caption": "one"}, {"caption": "two"}], None)
    first, second = outbox.head(2)
    outbox.delete([first])
    assert told == []
    outbox.delete([second])
    assert told == [0]
    outbox.close()


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
    assert output[-1].startswith(f"full {path} cannot be read or written (disk I/O error)")
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
        outbox.delete(outbox.head(9))
        outbox.close()
    assert found == [("porch", 5), ("porch", 6), ("gate", 3)]


# ---- what the file may be ---------------------------------------------------------------------------------


def texts(outbox: Outbox) -> list[Any]:
    return [entry.body["text"] for entry in outbox.head(1000)]


def put(outbox: Outbox, *names: str, source: str = "porch") -> None:
    for name in names:
        outbox.put(source, [{"task": "caption", "text": name}], FileKey(name, 1, 1))


def test_what_put_returned_for_is_on_the_disk(tmp_path: Path) -> None:
    """Measured at SQLite itself: with less than synchronous=FULL (2) a power cut may take the last results."""
    outbox = Outbox(tmp_path / "outbox.db")
    assert outbox._book is not None
    db = outbox._book.connection
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    synchronous = []
    db.set_trace_callback(
        lambda sql: synchronous.append(db.execute("PRAGMA synchronous").fetchone()[0]) if sql == "COMMIT" else None
    )
    for _ in range(2):
        put(outbox, "a")
        outbox.put("porch", [], FileKey("b", 1, 1))
        outbox.put("yard", [{"task": "caption"}], None)
        outbox.delete(outbox.head(1))  # may be lost: then the result is sent twice
    assert synchronous == [2, 2, 2, 1, 2, 2, 2, 1]
    outbox.close()


def test_two_daemons_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a disk" / "state" / "outbox.db"
    outbox = Outbox(path)
    with pytest.raises(UnavailableError, match=r"outbox\.db: another edge-daemon has it open"):
        Outbox(path)
    put(outbox, "a")
    outbox.close()
    again = Outbox(path)
    assert texts(again) == ["a"]
    again.close()


@pytest.mark.parametrize("content", [b"my diary, " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_database_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(content)
    outbox = Outbox(path)
    put(outbox, "a")
    assert (texts(outbox), outbox.problem) == (["a"], "")
    assert outbox.damaged_files() == ["outbox.db.damaged-1"]
    assert (tmp_path / "outbox.db.damaged-1").read_bytes() == content
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(f"{path}: damaged: file is not a database; it is kept as outbox.db.damaged-1; 0 results")
    outbox.close()


def test_another_layout_is_kept_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("CREATE TABLE entries (row INTEGER PRIMARY KEY)")
    db.close()
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox, "a")
    assert outbox.damaged_files() == ["outbox.db.damaged-1"]
    outbox.close()


def test_what_a_later_version_left_is_kept_aside_and_read(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "a")
    outbox.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={LAYOUT + 1}")
    outbox = Outbox(path)
    assert (texts(outbox), outbox.damaged_files()) == (["a"], ["outbox.db.damaged-1"])
    outbox.close()


def test_of_many_damaged_files_the_last_three_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "outbox.db").write_text(f"diary {number}")
        Outbox(tmp_path / "outbox.db").close()
    kept = [(tmp_path / f"outbox.db.damaged-{n}").read_text() for n in (3, 4, 5)]
    assert kept == ["diary 2", "diary 3", "diary 4"]
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == 3


def scene(number: int, size_bytes: int = 300) -> str:
    """A text that takes so many bytes, compressed."""
    return f"{number:04} {random.Random(number).randbytes(size_bytes).hex()}"


def filled(path: Path, count: int) -> None:
    """An outbox of some pages, closed."""
    outbox = Outbox(path)
    for number in range(count):
        put(outbox, scene(number))
    outbox.delete(outbox.head(1))
    outbox.close()


PAGE_BYTES = 1024
GARBAGE = b"\x5a" * PAGE_BYTES
ROWS, KEYS = 0x0D, 0x0A
"""First bytes of SQLite's pages that hold the rows of `entries`, and those of `files` and `numbers`."""


def pages(data: bytearray, kind: int, word: bytes = b"") -> list[slice]:
    """Where the pages of a kind with a word in them are."""
    found = [slice(start, start + PAGE_BYTES) for start in range(PAGE_BYTES, len(data), PAGE_BYTES)]
    return [page for page in found if data[page.start] == kind and word in data[page]]


def two_pages_of_results(data: bytearray) -> None:
    leaves = pages(data, ROWS)
    data[leaves[len(leaves) // 4]] = data[leaves[len(leaves) * 3 // 4]] = GARBAGE


def a_page_twice(data: bytearray) -> None:
    leaves = pages(data, ROWS)
    data[leaves[40]] = data[leaves[20]]


def pages_and_a_result(data: bytearray) -> None:
    two_pages_of_results(data)
    data[data.index(packed({"task": "caption", "text": scene(5), "seq": 6})) + 20] ^= 1


def a_page_of_files(data: bytearray) -> None:
    leaves = pages(data, KEYS, b"porch0")
    data[leaves[len(leaves) // 2]] = GARBAGE


def the_numbers(data: bytearray) -> None:
    (page,) = pages(data, KEYS, b"seq/porch")
    data[page] = GARBAGE


@pytest.mark.parametrize(
    "damage", [two_pages_of_results, a_page_twice, pages_and_a_result, a_page_of_files, the_numbers]
)
def test_what_a_damaged_file_still_says_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytearray], None]
) -> None:
    path = tmp_path / "outbox.db"
    filled(path, 150)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    outbox = Outbox(path)
    assert outbox.damaged_files() == ["outbox.db.damaged-1"]
    assert (tmp_path / "outbox.db.damaged-1").read_bytes() == data
    left = [entry.body for entry in outbox.head(1000)]
    lost = 149 - len(left)
    assert 0 < lost <= 7 if damage in (two_pages_of_results, a_page_twice, pages_and_a_result) else not lost
    assert [body["seq"] for body in left] == sorted({body["seq"] for body in left})
    assert all(body["text"] == scene(body["seq"] - 1) for body in left)
    put(outbox, "new")
    assert outbox.head(1000)[-1].body["seq"] == 151, "numbers go on"
    known = outbox.wanted("porch", [FileKey(scene(number), 1, 1) for number in range(150)]).count(False)
    assert known == 150 if damage is not a_page_of_files else 140 <= known < 150
    if damage is not a_page_twice:  # which gives some results twice
        assert f" {len(left)} results and {known} marks of files were read from it; files without a mark" in caplog.text
    outbox.close()


REOPENER = """\
import resource, signal, sys
from pathlib import Path
from edge_daemon.outbox import Outbox
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
print(Outbox(Path(sys.argv[1])).problem)
"""


@pytest.mark.parametrize("room_bytes", [20_000, 40_000], ids=["to read it", "to write it"])
def test_a_damaged_file_that_cannot_be_copied_for_want_of_room_stays_what_it_was(
    tmp_path: Path, room_bytes: int
) -> None:
    """To read a log SQLite makes an index of 32 KiB beside it."""
    path = tmp_path / "outbox.db"
    filled(path, 150)
    data = bytearray(path.read_bytes())
    two_pages_of_results(data)
    path.write_bytes(data)
    argv = [sys.executable, "-c", REOPENER, str(path), str(room_bytes)]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert told.startswith(f"{path} cannot be read or written (disk I/O error)")
    assert path.read_bytes() == data
    assert not list(tmp_path.glob("*damaged*"))
    outbox = Outbox(path)
    assert len(outbox) > 140, "with room again"
    outbox.close()


def test_a_file_that_was_cut_short_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    filled(path, 150)
    os.truncate(path, path.stat().st_size * 2 // 3)
    outbox = Outbox(path)
    assert outbox.damaged_files() == ["outbox.db.damaged-1"]
    assert len(outbox) > 50
    put(outbox, "new")
    seqs = [entry.body["seq"] for entry in outbox.head(1000)]
    assert seqs == sorted(set(seqs))
    outbox.close()


def test_a_result_with_flipped_bits_does_not_stop_the_others(tmp_path: Path) -> None:
    """SQLite does not see it: the pages are whole."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "a", "flip me", "c")
    outbox.close()
    data = bytearray(path.read_bytes())
    place = data.index(packed({"task": "caption", "text": "flip me", "seq": 2}))
    data[place + 20] ^= 1
    path.write_bytes(data)
    outbox = Outbox(path)
    assert texts(outbox) == ["a", "c"]
    assert (len(outbox), outbox.dropped("damaged")) == (2, 1)
    outbox.delete(outbox.head(2))
    outbox.close()
    outbox = Outbox(path)
    assert (len(outbox), outbox.dropped("damaged")) == (0, 1)
    outbox.close()


def test_a_file_that_turns_to_garbage_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    filled(path, 150)
    outbox = Outbox(path)
    with path.open("r+b") as file:
        file.write(b"\x5a" * path.stat().st_size)
    (path.with_name("outbox.db-wal")).write_bytes(b"")
    assert outbox._book is not None
    outbox._book.connection.execute("PRAGMA shrink_memory")
    for number in range(20):
        put(outbox, f"new {number}")
    assert {f"new {number}" for number in range(20)} <= set(texts(outbox))
    outbox.close()
    outbox = Outbox(path)
    assert {f"new {number}" for number in range(20)} <= set(texts(outbox))
    outbox.close()


@pytest.mark.parametrize("instead", [None, b"garbage" * 1000])
def test_a_file_that_is_replaced_while_it_is_open(tmp_path: Path, instead: bytes | None) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "a", "b")
    outbox.delete(outbox.head(1))
    path.unlink()
    if instead is not None:
        (tmp_path / "other").write_bytes(instead)
        os.replace(tmp_path / "other", path)
    put(outbox, "c")
    assert sorted(texts(outbox)) == ["b", "c"]
    outbox.close()
    outbox = Outbox(path)
    assert sorted(texts(outbox)) == ["b", "c"]
    assert outbox.wanted("porch", [FileKey(name, 1, 1) for name in "abcd"]) == [False, False, False, True]
    put(outbox, "d")
    assert outbox.head(9)[-1].body["seq"] == 4
    outbox.close()


def test_a_file_that_is_replaced_by_another_outbox_while_it_is_open(tmp_path: Path) -> None:
    """As by one of a backup: the results of both have rows of their own."""
    path, backup = tmp_path / "outbox.db", tmp_path / "backup.db"
    other = Outbox(backup)
    put(other, "x", "y", source="yard")
    other.close()
    outbox = Outbox(path)
    put(outbox, "a", "b")
    os.replace(backup, path)
    put(outbox, "c")
    assert sorted(texts(outbox)) == ["a", "b", "c", "x", "y"]
    outbox.close()


# ---- a disk that cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize("obstacle", ["a file where the directory should be", "a directory where the file should be"])
def test_without_a_disk_it_keeps_all_in_memory_until_there_is_one(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    path = tmp_path / "state" / "outbox.db"
    if "file where" in obstacle:
        path.parent.touch()
    else:
        path.mkdir(parents=True)
    outbox = Outbox(path, monotonic=clock)
    assert outbox.problem.startswith(f"{path} cannot be used: ")
    put(outbox, "a", "b", "c")
    assert texts(outbox) == ["a", "b", "c"]
    assert outbox.wanted("porch", [FileKey("a", 1, 1), FileKey("a", 2, 1), FileKey("d", 1, 1)]) == [False, True, True]
    outbox.delete(outbox.head(1))
    assert (texts(outbox), len(outbox), outbox.in_memory()) == (["b", "c"], 2, 2)
    before = outbox.last_row()
    for _ in range(3):
        clock.advance(RETRY_S)
        outbox.tend()
    assert len(caplog.records) == 1, "it is said once"
    path.parent.unlink() if "file where" in obstacle else path.rmdir()
    outbox.tend()
    assert outbox.in_memory() == 2, "not tried again at once"
    clock.advance(RETRY_S)
    outbox.tend()
    assert (outbox.problem, outbox.in_memory(), texts(outbox)) == ("", 0, ["b", "c"])
    put(outbox, "d")
    assert outbox.last_row() > before
    outbox.close()
    outbox = Outbox(path)
    assert [(e.body["text"], e.body["seq"]) for e in outbox.head(9)] == [("b", 2), ("c", 3), ("d", 4)]
    assert outbox.wanted("porch", [FileKey(name, 1, 1) for name in "abcde"]) == [False] * 4 + [True]
    outbox.close()


def test_memory_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_daemon.outbox.MEMORY_BYTES", 1000)
    monkeypatch.setattr("edge_daemon.outbox.MEMORY_FILES", 5)
    outbox = Outbox(tmp_path)
    put(outbox, *(scene(number, 100) for number in range(20)))
    kept = texts(outbox)
    assert kept == [scene(number, 100) for number in range(20 - len(kept), 20)]
    assert 4 < len(kept) < 10
    assert (len(outbox), outbox.dropped("full")) == (len(kept), 20 - len(kept))
    files = [FileKey(scene(number, 100), 1, 1) for number in range(20)]
    assert outbox.wanted("porch", files) == [True] * 15 + [False] * 5
    outbox.close()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("restarts", [False, True])
def test_results_in_memory_find_the_file_that_could_not_be_read_at_first(
    tmp_path: Path, clock: Clock, count: int, restarts: bool
) -> None:
    """What is older is sent first, and numbers are not given twice from then on, nor after a restart."""
    (tmp_path / "away").mkdir()
    filled(tmp_path / "away" / "outbox.db", 3)
    (tmp_path / "state").touch()
    outbox = Outbox(tmp_path / "state" / "outbox.db", monotonic=clock)
    put(outbox, *["new"] * count)
    (tmp_path / "state").unlink()
    (tmp_path / "away").rename(tmp_path / "state")
    clock.advance(RETRY_S)
    outbox.tend()
    assert [text[:4] for text in texts(outbox)] == ["0001", "0002", *["new"] * count]
    if restarts:
        outbox.close()
        outbox = Outbox(tmp_path / "state" / "outbox.db")
    put(outbox, "newer")
    assert [entry.body["seq"] for entry in outbox.head(9)] == [2, 3, *range(1, count + 1), max(3, count) + 1]
    outbox.close()


def test_what_is_in_memory_at_the_end_is_written_though_it_is_too_early_to_try_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "a")
    path.unlink()
    path.mkdir()
    put(outbox, "b")
    assert (outbox.in_memory(), bool(outbox.problem)) == (1, True)
    path.rmdir()
    outbox.close()
    outbox = Outbox(path)
    assert sorted(texts(outbox)) == ["a", "b"]
    outbox.close()


def test_a_disk_that_could_not_be_read_for_a_while_is_well_again(tmp_path: Path, clock: Clock) -> None:
    outbox = Outbox(tmp_path / "outbox.db", monotonic=clock)
    put(outbox, "a")
    assert outbox._book is not None
    outbox._book.connection.set_progress_handler(lambda: 1, 1)  # SQLite gives up whatever it begins
    assert (texts(outbox), bool(outbox.problem)) == ([], True)
    outbox._book.connection.set_progress_handler(None, 0)
    clock.advance(RETRY_S)
    outbox.tend()
    assert (texts(outbox), outbox.problem) == (["a"], "")
    outbox.close()


def test_what_is_forgotten_while_the_disk_is_away_counts_no_more(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, *(scene(number) for number in range(10)))
    path.unlink()
    path.mkdir()
    put(outbox, "new")
    assert "cannot be used" in outbox.problem
    outbox.delete(outbox.head(8))
    left = outbox.head(9)
    assert [entry.body["text"] for entry in left] == [scene(8), scene(9), "new"]
    assert (len(outbox), outbox.size_bytes) == (3, sum(entry.size_bytes for entry in left))
    outbox.close()


# ---- bounds -----------------------------------------------------------------------------------------------


def test_more_than_may_wait_drops_the_oldest_and_counts_them_for_ever(tmp_path: Path) -> None:
    path, limits = tmp_path / "outbox.db", Limits(max_bytes=10_000)
    outbox = Outbox(path, limits)
    for number in range(50):
        put(outbox, scene(number, 500))
        assert outbox.size_bytes <= 10_000
    kept = [entry.body["seq"] for entry in outbox.head(100)]
    assert kept == list(range(51 - len(kept), 51)), "the newest, without a gap among them"
    assert 15 < len(kept) < 20
    assert outbox.dropped("full") == 50 - len(kept)
    outbox.close()
    outbox = Outbox(path, limits)
    assert outbox.dropped("full") == 50 - len(kept)
    assert len(outbox) == len(kept)
    outbox.delete(outbox.head(100))
    assert (outbox.size_bytes, len(outbox)) == (0, 0)
    outbox.close()


class Time:
    """A clock that is set by hand, and the time since boot."""

    def __init__(self, synced: bool | None = True) -> None:
        self.unix_s, self.boot_s, self.boot_id, self.synced = 1.8e9, 100.0, "boot 1", synced

    def __call__(self) -> Stamp:
        return Stamp(self.unix_s, self.boot_s, self.boot_id, self.synced)

    def pass_by(self, seconds: float) -> None:
        self.unix_s += seconds
        self.boot_s += seconds


def test_what_waits_too_long_is_dropped_and_counted(tmp_path: Path, clock: Clock) -> None:
    time = Time()
    outbox = Outbox(tmp_path / "outbox.db", Limits(max_age_s=7 * DAY_S), time, clock)
    for day in range(10):
        put(outbox, f"day {day}")
        time.pass_by(DAY_S)
        clock.advance(EXPIRE_EVERY_S)
        outbox.tend()
    assert texts(outbox) == [f"day {day}" for day in range(3, 10)]
    assert outbox.dropped("old") == 3
    outbox.close()
    time.pass_by(30 * DAY_S)
    time.boot_id, time.boot_s = "boot 2", 5.0  # the board was off; its clock is right again
    outbox = Outbox(tmp_path / "outbox.db", Limits(max_age_s=7 * DAY_S), time, clock)
    outbox.tend()
    assert (len(outbox), outbox.dropped("old")) == (0, 10)
    outbox.close()


def count_unpacked(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with every result that is unpacked."""
    unpacked: list[None] = []

    def counted(values: Sequence[Any]) -> Entry | None:
        unpacked.append(None)
        return entry_of(values)

    monkeypatch.setattr("edge_daemon.book.entry_of", counted)
    return unpacked


@pytest.mark.parametrize("why", ["old", "full"])
def test_many_that_are_dropped_at_once_are_unpacked_once_and_stay_dropped_when_we_are_killed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """So many took longer than the watchdog waits, at every start."""
    path, time, count = tmp_path / "outbox.db", Time(), 10 * CHUNK
    outbox = Outbox(path, Limits(), time)
    for _ in range(10):
        outbox.put("porch", [{"task": "caption", "text": "a"}] * CHUNK, None)
    outbox.close()
    time.pass_by(8 * DAY_S if why == "old" else 0.0)
    outbox = Outbox(path, Limits() if why == "old" else Limits(max_bytes=1), time, clock)
    assert outbox._book is not None
    at_once = [0]
    outbox._book.connection.set_trace_callback(
        lambda sql: at_once.append(0) if sql == "COMMIT" else at_once.append(at_once.pop() + ("DELETE FROM e" in sql))
    )
    unpacked = count_unpacked(monkeypatch)
    outbox.tend() if why == "old" else outbox.put("porch", [], FileKey("a", 1, 1))
    assert (len(outbox), outbox.dropped(why), len(unpacked)) == (0, count, count)
    assert max(at_once) == CHUNK
    outbox.close()


def test_what_cannot_be_deleted_from_the_file_is_not_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, *map(str, range(20)))
    path.unlink()
    path.mkdir()
    outbox.delete(outbox.head(10))
    assert "cannot be used" in outbox.problem
    unpacked = count_unpacked(monkeypatch)
    assert [entry.body["text"] for entry in outbox.head(3)] == ["10", "11", "12"]
    assert len(unpacked) == 3
    outbox.close()


@pytest.mark.parametrize("jump_s", [50 * 365 * DAY_S, -50 * 365 * DAY_S])
@pytest.mark.parametrize("synced", [True, False, None])
@pytest.mark.parametrize("boot_id", ["boot 1", "boot 2"])
def test_a_clock_that_jumps_drops_nothing(
    tmp_path: Path, clock: Clock, jump_s: float, synced: bool | None, boot_id: str
) -> None:
    """In the same boot, whatever the clock says; after another start of the board, unless both times were right."""
    time = Time(synced=False)
    outbox = Outbox(tmp_path / "outbox.db", Limits(), time, clock)
    put(outbox, "a", "b")
    time.unix_s += jump_s
    time.synced, time.boot_id = synced, boot_id
    clock.advance(EXPIRE_EVERY_S)
    outbox.tend()
    assert (texts(outbox), outbox.dropped("old")) == (["a", "b"], 0)
    outbox.close()


def test_what_the_broker_does_not_take_is_passed_over_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_daemon.outbox.ASIDE", 2)
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, *"abcdef")
    for entry in outbox.head(3):
        outbox.pass_over(entry)
    assert (texts(outbox), outbox.head(2)[0].body["text"], len(outbox)) == (["d", "e", "f"], "d", 3)
    assert (outbox.aside(), outbox.dropped("refused")) == (2, 1)
    outbox.delete(outbox.head(3))
    assert (texts(outbox), len(outbox)) == ([], 0)
    outbox.close()
    outbox = Outbox(path)
    assert (texts(outbox), len(outbox), outbox.aside()) == (["b", "c"], 2, 0)
    assert outbox.dropped("refused") == 1
    outbox.close()


def test_what_is_passed_over_and_dropped_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was on its way to the broker when it was dropped from memory."""
    monkeypatch.setattr("edge_daemon.outbox.MEMORY_BYTES", 300)
    outbox = Outbox(tmp_path)
    put(outbox, "refused", "on its way")
    outbox.pass_over(outbox.head(1)[0])
    on_their_way = outbox.head(1)
    put(outbox, *"abcdefgh")
    assert not {"refused", "on its way"} & set(texts(outbox))
    outbox.delete(on_their_way)
    assert (len(outbox), outbox.aside()) == (len(texts(outbox)), 0)
    outbox.delete(outbox.head(9))
    assert (len(outbox), outbox.size_bytes) == (0, 0)
    outbox.close()


def test_what_was_dropped_on_its_way_to_the_broker_is_not_passed_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", Limits(max_bytes=300))
    put(outbox, scene(1, 50), scene(2, 50))
    on_their_way = outbox.head(2)
    put(outbox, scene(3, 200))
    for entry in on_their_way:
        outbox.pass_over(entry)
    assert (len(outbox), outbox.aside(), outbox.dropped("full")) == (1, 0, 2)
    outbox.delete(outbox.head(1))
    assert len(outbox) == 0
    outbox.close()


def test_what_is_passed_over_is_tried_again_from_a_file_that_was_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "refused")
    outbox.pass_over(outbox.head(1)[0])
    path.unlink()
    put(outbox, "a")
    assert sorted(texts(outbox)) == ["a", "refused"]
    assert (len(outbox), outbox.aside()) == (2, 0)
    outbox.close()


# ---- what is the newest -----------------------------------------------------------------------------------


def newest(outbox: Outbox) -> list[Any]:
    return [entry.body["text"] for entry in outbox.newest()]


def test_the_newest_of_every_source_and_task(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    assert newest(outbox) == []
    put(outbox, "p1", "p2")
    put(outbox, "g1", source="gate")
    outbox.put("porch", [{"task": "question", "text": "yes"}], None)
    for _ in range(2):
        assert newest(outbox) == ["p2", "g1", "yes"]
        outbox.close()
        outbox = Outbox(path)
    outbox.delete(outbox.head(1))
    assert newest(outbox) == ["p2", "g1", "yes"]
    outbox.close()


def test_what_is_older_than_a_delivered_one_is_never_news(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "1", "2", "3")
    put(outbox, "other", source="gate")
    outbox.delete([entry for entry in outbox.head(9) if entry.body["text"] == "3"])
    for _ in range(2):  # nor after a restart, when nobody remembers
        assert newest(outbox) == ["other"]
        outbox.close()
        outbox = Outbox(path)
    put(outbox, "4")
    assert newest(outbox) == ["other", "4"]
    outbox.close()


def test_what_was_passed_over_is_never_news_when_a_newer_one_was_delivered(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    put(outbox, "refused", "delivered")
    outbox.pass_over(outbox.head(1)[0])
    outbox.delete(outbox.head(1))
    outbox.close()
    outbox = Outbox(path)
    assert (texts(outbox), newest(outbox)) == (["refused"], [])
    outbox.close()
