"""The outbox: results that the broker has not confirmed yet, and files that were dealt with.

A result and the mark "this file was dealt with" are written together, so a file is neither captioned twice nor
left out; a mark stays as long as its file (rounds.py). Everything that changes is first a `Change` in memory, which is
written at once. When the disk is full, read-only or gone, it stays there, bounded, and is published from there, until
the disk can be written again: a board whose card dies goes on captioning, and says so. A damaged file is kept aside
and a fresh one gets what can still be read of it (renewal.py).

Results that could be sent are dropped for two reasons only, the oldest first: more than `Limits.max_bytes` wait, or
one is older than `Limits.max_age_s`. Both are counted, and the gap shows in `seq`. Knows nothing of MQTT; of a result
it knows the task, and gives it its `seq`.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from edge_daemon import renewal
from edge_daemon.book import Book, Change, Entry, is_damage, is_locked, name_bytes, packed, reason, version_of
from edge_daemon.clock import Clock, Stamp, age_s
from edge_daemon.errors import UnavailableError
from edge_daemon.messages import FileKey
from edge_daemon.rounds import Rounds
from edge_daemon.salvage import damaged_files
from edge_daemon.units import DAY_S, MIB

MEMORY_BYTES = 8 * MIB
"""Results that are kept in memory while the disk cannot be written: some 8000."""
MEMORY_FILES = 50_000
RETRY_S = 10.0
"""How soon a disk that could not be written is tried again; a dying card may hold us up for seconds each time."""
EXPIRE_EVERY_S = 60.0
CHUNK = 50
ASIDE = 100
"""Results that a broker does not take, and that are kept all the same."""
LAST_ROW = 2**63 - 1
DROPPED = ("full", "old", "refused", "damaged")
"""Why results are lost: too many wait, too old, too many that the broker does not take, damaged on the card."""
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What may wait."""

    max_bytes: int = 64 * MIB
    max_age_s: float = 7 * DAY_S


class Outbox:
    """One file, or what replaces it. Nothing but a second daemon makes it fail."""

    def __init__(
        self,
        path: Path,
        limits: Limits | None = None,
        clock: Callable[[], Stamp] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or make the file. Raises UnavailableError when another process has it open.

        `on_change` is called when `problem` changes, and when nothing waits any more.
        """
        self._path = path
        self._limits = limits or Limits()
        self.clock = clock or Clock()
        self._monotonic = monotonic
        self._book: Book | None = None
        self._waiting = Change()
        """What is not in the file yet; empty as long as all is well."""
        self._numbers: dict[str, int] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self._aside: dict[int, Entry] = {}
        self._rounds = Rounds()
        self._next_row = 0
        self._retry_at_s = self._read_at_s = self._expire_at_s = monotonic()
        self._replaced_at_s = monotonic() - RETRY_S
        self.problem = ""
        """Why results are in memory only; empty when they are on disk."""
        self._on_change = on_change
        self._open()
        if self._book is None:  # beyond all rows that the file may hold when it can be read
            self._next_row = time.time_ns()

    # ---- what the others call --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; what it holds stays."""
        if self._book is not None:
            self._retry_at_s = self._monotonic()
            self._write()
        if self._book is not None:
            with suppress(sqlite3.Error):
                self._book.close()
            self._book = None
        if self._waiting.entries:
            log.error("%d results could not be written to %s and are lost", len(self._waiting.entries), self._path)
            self._waiting = Change()

    def put(self, source: str, results: Sequence[dict[str, Any]], file: FileKey | None) -> None:
        """Keep results, each given its `seq`, and mark the file they are about, all or nothing.

        They are on disk when it returns, unless `problem` says otherwise.
        """
        made, seq = self.clock(), self._numbers.get(f"seq/{source}", 0)
        bodies = [{**result, "seq": seq + number} for number, result in enumerate(results, 1)]
        sizes_bytes = [len(packed(body)) for body in bodies]  # before anything is changed: this may raise
        for body, size_bytes in zip(bodies, sizes_bytes, strict=True):
            entry = Entry(self._next_row, source, str(body.get("task", "")), body, size_bytes, made)
            self._waiting.entries[entry.row] = entry
            self._newest[source, entry.task] = entry.row
            self._next_row += 1
        if bodies:
            self._set_number(f"seq/{source}", seq + len(bodies))
        if file is not None:
            self._waiting.files[source, name_bytes(file.name)] = version_of(file)
        self._make_room()
        self._write()

    def wanted(self, source: str, files: Sequence[FileKey]) -> list[bool]:
        """Which of the files have not been dealt with as they are now; all that nobody knows of any more."""
        return [self._version(source, file) != version_of(file) for file in files]

    def doubtful(self, source: str, new: int) -> list[str]:
        """Files that were dealt with and may have gone, to ask the source for: it has offered so many new ones."""
        return self._read(lambda book: self._rounds.next(source, new, book), [])

    def forget(self, source: str, names: Sequence[str]) -> None:
        """These files are gone: that they were dealt with is forgotten when something is written the next time."""
        for name in names:
            mark = source, name_bytes(name)
            self._waiting.files.pop(mark, None)
            self._waiting.forgotten.add(mark)

    def head(self, count: int, behind: int = 0, up_to: int = LAST_ROW) -> list[Entry]:
        """The oldest entries with rows in ]behind, up_to], in order."""
        passed_over = self._waiting.gone.keys() | self._aside.keys()
        nothing: list[tuple[int, Entry | None]] = []
        found = []
        for row, entry in self._read(lambda book: book.head(count, behind, up_to, passed_over), nothing):
            if entry is None:
                log.error("%s: a result is damaged and cannot be sent", self._path)
                self._drop(row, 0, "damaged")
            else:
                found.append(entry)
        in_memory = self._waiting.entries.items()
        found += [entry for row, entry in in_memory if behind < row <= up_to and row not in passed_over]
        return found[:count]

    def newest(self) -> list[Entry]:
        """The last result of every source and task, of those where none that is newer has been delivered."""
        found: list[Entry] = []
        for (source, task), row in self._newest.items():
            shown = self._numbers.get(f"shown/{source}/{task}", 0)
            found += [entry for entry in self.head(1, row - 1, row) if entry.body["seq"] > shown]
        return sorted(found, key=lambda entry: entry.row)

    def last_row(self) -> int:
        """The row of the last result there ever was; later ones have higher rows."""
        return self._next_row - 1

    def delete(self, entries: Sequence[Entry]) -> None:
        """Forget entries: the broker has them."""
        for entry in entries:
            self._forget(entry.row, entry.size_bytes)
        oldest_row = min([*self._aside, *(entry.row for entry in self.head(1))], default=LAST_ROW)
        for entry in entries:  # a newer one went first: those that are behind it must not be taken for news, ever
            if entry.row > oldest_row:
                name, seq = f"shown/{entry.source}/{entry.task}", entry.body["seq"]
                self._set_number(name, max(self._numbers.get(name, 0), seq))
        self._write()
        if not len(self):
            self._on_change()

    def pass_over(self, entry: Entry) -> None:
        """Pass over an entry that the broker does not take, until the next start: it may have other settings then."""
        if self.head(1, entry.row - 1, entry.row):  # else it was dropped while it was on its way
            self._aside[entry.row] = entry
        while len(self._aside) > ASIDE:
            first = next(iter(self._aside.values()))
            self._drop(first.row, first.size_bytes, "refused")
        self._write()

    def take_up(self, entries: Sequence[Entry]) -> None:
        """Pass these over no longer."""
        for entry in entries:
            self._aside.pop(entry.row, None)

    def tend(self) -> None:
        """Look after what depends on time: to be called every few seconds."""
        now_s = self._monotonic()
        if self.problem and now_s >= self._retry_at_s:
            self._try_again()
        if now_s >= self._expire_at_s:
            self._expire_at_s = now_s + EXPIRE_EVERY_S
            self._expire()

    def __len__(self) -> int:
        """Entries that wait, without those that are passed over."""
        on_disk = self._book.count - len(self._waiting.gone) if self._book else 0
        waiting = on_disk + len(self._waiting.entries) - len(self._aside)
        return max(0, waiting)  # while a disk fails, rows may be counted as gone that are; len() raises below 0

    @property
    def size_bytes(self) -> int:
        """Of all results that are kept."""
        on_disk = self._book.size_bytes - sum(self._waiting.gone.values()) if self._book else 0
        return on_disk + self._waiting_bytes()

    def dropped(self, why: str) -> int:
        """How many results were dropped since the file was made: one of DROPPED."""
        return self._numbers.get(f"dropped/{why}", 0)

    def aside(self) -> int:
        """How many results are passed over, because the broker does not take them."""
        return len(self._aside)

    def in_memory(self) -> int:
        """How many results a power cut would take."""
        return len(self._waiting.entries)

    def damaged_files(self) -> list[str]:
        """The names of damaged files that were kept aside."""
        return damaged_files(self._path)

    # ---- bounds ----------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Drop the oldest until the limit holds, and the oldest in memory until that limit holds."""
        while (excess_bytes := self.size_bytes - self._limits.max_bytes) > 0 and (oldest := self.head(CHUNK)):
            for entry in oldest:
                if excess_bytes > 0:
                    excess_bytes -= entry.size_bytes
                    self._drop(entry.row, entry.size_bytes, "full")
            self._write()  # that many may take a while: should we be killed, they need not be dropped again
        while self._waiting_bytes() > MEMORY_BYTES:
            self._drop(next(iter(self._waiting.entries)), 0, "full")
        while len(self._waiting.files) > MEMORY_FILES:
            del self._waiting.files[next(iter(self._waiting.files))]

    def _waiting_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._waiting.entries.values())

    def _expire(self) -> None:
        """Drop what is too old; what is of unknown age is young: a clock that jumps costs no result."""
        now, max_age_s, old = self.clock(), self._limits.max_age_s, 0
        while entries := list(takewhile(lambda e: (age_s(e.made, now) or 0.0) > max_age_s, self.head(CHUNK))):
            for entry in entries:
                self._drop(entry.row, entry.size_bytes, "old")
            old += len(entries)
            self._write()
        if old:
            log.warning("%d results older than %.1f days were dropped", old, max_age_s / DAY_S)

    def _drop(self, row: int, size_bytes: int, why: str) -> None:
        self._forget(row, size_bytes)
        self._set_number(f"dropped/{why}", self.dropped(why) + 1)

    def _forget(self, row: int, size_bytes: int) -> None:
        self._aside.pop(row, None)
        if self._waiting.entries.pop(row, None) is None and not (self._book and row > self._book.last_row):
            self._waiting.gone[row] = size_bytes

    def _set_number(self, name: str, value: int) -> None:
        self._numbers[name] = self._waiting.numbers[name] = value

    def _version(self, source: str, file: FileKey) -> str | None:
        mark = source, name_bytes(file.name)
        if mark in self._waiting.files or mark in self._waiting.forgotten:
            return self._waiting.files.get(mark)
        return self._read(lambda book: book.version(*mark), None)

    # ---- the file, and what may be wrong with it -------------------------------------------------------------

    def _write(self) -> None:
        """Write all that waits to be written, unless the disk is in trouble: then `tend` tries again."""
        if self._book is None or not self._waiting or self._monotonic() < self._retry_at_s:
            return
        if self._book.moved():
            self._replace("it was moved or removed")
            return
        try:
            self._book.write(self._waiting)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return
        self._all_written()

    def _all_written(self) -> None:
        results, files = len(self._waiting.entries), len(self._waiting.files)
        self._waiting = Change()
        if self.problem:
            log.warning("%s: on disk again; %d results and %d files were kept in memory", self._path, results, files)
            self.problem = ""
            self._on_change()

    def _read(self, read: Callable[[Book], T], otherwise: T) -> T:
        """What the file says; when it cannot be read, as if it said nothing."""
        if self._book is None or self._monotonic() < self._read_at_s:
            return otherwise
        try:
            return read(self._book)
        except (sqlite3.Error, OSError) as error:
            self._read_at_s = self._monotonic() + RETRY_S
            self._failed(error)
            return otherwise

    def _failed(self, error: Exception) -> None:
        """Say what is wrong, once, and go on in memory."""
        now_s = self._monotonic()
        if is_damage(error) and self._book is not None and now_s >= self._replaced_at_s + RETRY_S:
            self._replaced_at_s = now_s
            self._replace(str(error))
            return
        self._retry_at_s = now_s + RETRY_S
        words = f"{reason(error, self._path)}; results are kept in memory only, and a power cut would lose them"
        if words != self.problem:
            log.error("%s", words)
            self.problem = words
            self._on_change()

    def _try_again(self) -> None:
        self._retry_at_s = self._monotonic()
        if self._book is None:
            self._open()
        elif self._waiting:
            self._write()
        elif self._read(lambda book: isinstance(book.head(1, 0, LAST_ROW), list), False):  # only reading had failed
            self._all_written()

    def _open(self) -> None:
        """Take the file into use."""
        try:
            book = renewal.opened(self._path)
            numbers, newest = book.numbers(), book.newest()
        except (sqlite3.Error, OSError) as error:
            if is_locked(error) and not self.problem:
                raise UnavailableError(
                    f"{self._path}: another edge-daemon has it open; each one needs its own state_dir"
                ) from error
            self._failed(error)
            return
        self._take(book, numbers, newest)

    def _take(self, book: Book, numbers: dict[str, int], newest: dict[tuple[str, str], int]) -> None:
        self._book = book
        self._aside.clear()  # the rows of another file
        for name, value in numbers.items():
            self._numbers[name] = max(value, self._numbers.get(name, 0))
        self._waiting.numbers = {name: self._numbers[name] for name in self._waiting.numbers}
        self._newest = newest | {(e.source, e.task): row for row, e in self._waiting.entries.items()}
        self._next_row = max(self._next_row, book.last_row + 1)
        self._read_at_s = self._monotonic()
        if self._waiting:
            self._write()
        else:
            self._all_written()

    def _replace(self, why: str) -> None:
        """A file that was in use is damaged, or is another one by now: go on with a new one."""
        old, self._book = self._book, None
        assert old is not None
        try:
            if old.moved():
                book = renewal.made_anew(old, why, self._next_row)
            else:
                old.close()
                book = renewal.renewed(self._path, why)
            self._take(book, book.numbers(), book.newest())
        except (sqlite3.Error, OSError) as error:
            self._book = old if old.moved() else None
            self._failed(error)
