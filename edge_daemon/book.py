"""The file of the outbox: one SQLite database, opened, checked and written. Knows no limits and no memory.

Made for a power cut at any moment and for SD cards:

* WAL with `synchronous=FULL`: every transaction that keeps a result is one fsync, and survives a power cut. One
  that only forgets what the broker has confirmed is not synced: it survives a crash of ours, and after a power
  cut the worst is that a result is sent twice.
* Pages of 1 KiB, as every changed page is written whole, and results are compressed. Nothing is written at rest.
* `locking_mode=EXCLUSIVE`: no shared memory file, and no second daemon in the same directory.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from edge_daemon.clock import Stamp
from edge_daemon.messages import FileKey

LAYOUT = 2
"""PRAGMA user_version; 0 is a new file, or the first layout."""
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entries (
    row INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    task TEXT NOT NULL,
    body BLOB NOT NULL,
    unix_s REAL NOT NULL,
    boot_s REAL NOT NULL,
    boot_id TEXT NOT NULL,
    synced INTEGER
) STRICT;
CREATE TABLE files (source TEXT, name BLOB, version TEXT NOT NULL, PRIMARY KEY (source, name)) STRICT, WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version={LAYOUT};
COMMIT;
"""
ENTRY_COLUMNS = "row, source, task, body, unix_s, boot_s, boot_id, synced"
ENTRY_TYPES = (int, str, str, bytes, float, float, str, int | None)
LOCK_WAIT_S = 1.0
LOG_LEFT_BYTES = 4 << 20
"""What the write-ahead log may keep of the disk; it is overwritten from its beginning about every MiB."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedError(sqlite3.DatabaseError):
    """Raised for a file that is no outbox, or not a whole one."""


@dataclass(frozen=True)
class Entry:
    """One result that waits for the broker."""

    row: int
    """Later results have higher rows."""
    source: str
    task: str
    body: dict[str, Any]
    size_bytes: int
    made: Stamp


@dataclass
class Change:
    """What is to be written, all or nothing."""

    entries: dict[int, Entry] = field(default_factory=dict)
    """By row, in order."""
    files: dict[tuple[str, bytes], str] = field(default_factory=dict)
    """(source, name) → version of a file that was dealt with."""
    forgotten: set[tuple[str, bytes]] = field(default_factory=set)
    """(source, name) of files that are gone, whether they were dealt with or not."""
    gone: dict[int, int] = field(default_factory=dict)
    """Rows to forget, and the bytes of their results."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Counters, by name."""

    def __bool__(self) -> bool:
        return bool(self.entries or self.files or self.forgotten or self.gone or self.numbers)


class Book:
    """One open file. Whatever goes wrong comes out as sqlite3.Error or OSError."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and check all of it. Raises DamagedError, sqlite3.Error, OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._log_path = path.with_name(f"{path.name}-wal")
        self._log: tuple[int, int] | None = None
        self._db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_WAIT_S)
        try:
            self._prepare()
            self._count()
            self._file = _identity(path)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        for setting in (
            *("page_size=1024", "locking_mode=EXCLUSIVE", "secure_delete=OFF", "journal_mode=WAL"),
            f"journal_size_limit={LOG_LEFT_BYTES}",
        ):
            self._db.execute(f"PRAGMA {setting}").fetchone()
        self._set_durable(True)
        (layout,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            self._db.executescript(SCHEMA)
        elif layout != LAYOUT:
            raise DamagedError(f"its layout is {layout}; {LAYOUT} is needed")
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise DamagedError(" ".join(verdict.split()))
        try:
            for columns, table in ((ENTRY_COLUMNS, "entries"), ("source, name, version", "files")):
                self._db.execute(f"SELECT {columns} FROM {table} LIMIT 0")
            self._db.execute("SELECT name, value FROM numbers LIMIT 0")
        except sqlite3.OperationalError as error:
            raise DamagedError(str(error)) from error

    def _count(self) -> None:
        self.count, self.size_bytes, self.last_row = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(max(row), 0) FROM entries"
        ).fetchone()
        (self.file_count,) = self._db.execute("SELECT count(*) FROM files").fetchone()

    def _set_durable(self, durable: bool) -> None:
        self._durable = durable
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")

    def close(self) -> None:
        """Close the file; what it holds stays."""
        self._db.close()

    def moved(self) -> bool:
        """Whether the open file is no longer the one that has its name."""
        return _identity(self.path) != self._file

    def give_up_name(self) -> None:
        """Once it has moved: remove the log, if that is still ours, from beside what has the name now."""
        if _identity(self._log_path) == self._log:
            self._log_path.unlink(missing_ok=True)

    def write(self, change: Change) -> None:
        """Write it in one transaction; what is new in it survives a power cut from then on."""
        durable = bool(change.entries or change.files)
        if durable != self._durable:
            self._set_durable(durable)
        count, size_bytes = self.count, self.size_bytes
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in change.gone:
                query = "DELETE FROM entries WHERE row = ? RETURNING length(body)"
                for (length,) in self._db.execute(query, (row,)).fetchall():
                    count, size_bytes = count - 1, size_bytes - length
            self._insert_entries(values_of(entry) for entry in change.entries.values())
            query = "DELETE FROM files WHERE source = ? AND name = ?"
            fewer = self._db.executemany(query, [*change.forgotten, *change.files]).rowcount
            self._insert_files((source, name, version) for (source, name), version in change.files.items())
            self._insert_numbers(change.numbers.items())
        self._log = _identity(self._log_path)
        self.count = count + len(change.entries)
        self.size_bytes = size_bytes + sum(entry.size_bytes for entry in change.entries.values())
        self.file_count += len(change.files) - max(0, fewer)
        self.last_row = max(self.last_row, *change.entries, 0)

    def restore(self, entries: Iterable[Any], files: Iterable[Any], numbers: Iterable[Any]) -> None:
        """Write many rows as they are in one transaction, each read only when it is written."""
        self._set_durable(True)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._insert_entries(entries, "OR IGNORE ")  # a damaged file may give a row twice
            self._insert_files(files)
            self._insert_numbers(numbers)
        self._count()

    def _insert_entries(self, rows: Iterable[Any], on_conflict: str = "") -> None:
        self._db.executemany(f"INSERT {on_conflict}INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _insert_files(self, rows: Iterable[Any]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def _insert_numbers(self, rows: Iterable[Any]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?)", rows)

    def head(self, count: int, behind: int, up_to: int, without: Container[int] = ()) -> list[tuple[int, Entry | None]]:
        """The oldest rows in ]behind, up_to] with their entries, in order; None is an entry that is damaged.

        Those that are `without` are not unpacked: there may be thousands while the disk cannot be written.
        """
        query = f"SELECT {ENTRY_COLUMNS} FROM entries WHERE row > ? AND row <= ? ORDER BY row"
        found = (values for values in self._db.execute(query, (behind, up_to)) if values[0] not in without)
        return [(values[0], entry_of(values)) for values in islice(found, count)]

    def version(self, source: str, name: bytes) -> str | None:
        """As what a file was dealt with, if it was."""
        query = "SELECT version FROM files WHERE source = ? AND name = ?"
        found = self._db.execute(query, (source, name)).fetchone()
        return found[0] if found else None

    def names(self, source: str, behind: bytes, count: int) -> list[bytes]:
        """Files that were dealt with, in the order of their names."""
        query = "SELECT name FROM files WHERE source = ? AND name > ? ORDER BY name LIMIT ?"
        return [name for (name,) in self._db.execute(query, (source, behind, count))]

    def nth_name(self, source: str, number: int) -> bytes:
        """One of them, counted from 0; empty beyond the last one."""
        query = "SELECT name FROM files WHERE source = ? ORDER BY name LIMIT 1 OFFSET ?"
        found = self._db.execute(query, (source, number)).fetchone()
        return found[0] if found else b""

    def newest(self) -> dict[tuple[str, str], int]:
        """The last row of every source and task."""
        query = "SELECT source, task, max(row) FROM entries GROUP BY source, task"
        return {(source, task): row for source, task, row in self._db.execute(query)}

    def numbers(self) -> dict[str, int]:
        """All counters."""
        return dict(self._db.execute("SELECT name, value FROM numbers"))

    @property
    def connection(self) -> sqlite3.Connection:
        """For who reads a file that lost its name."""
        return self._db


def packed(body: dict[str, Any]) -> bytes:
    """A result as it is kept: half as long as its JSON, and with a checksum, as SQLite has none. Raises TypeError."""
    return zlib.compress(json.dumps(body).encode())


def values_of(entry: Entry) -> tuple[Any, ...]:
    """An entry as ENTRY_COLUMNS."""
    made = entry.made
    return (
        entry.row,
        entry.source,
        entry.task,
        packed(entry.body),
        made.unix_s,
        made.boot_s,
        made.boot_id,
        made.synced,
    )


def entry_of(values: Sequence[Any]) -> Entry | None:
    """An entry from ENTRY_COLUMNS; None for what is damaged."""
    if not all(isinstance(value, kind) for value, kind in zip(values, ENTRY_TYPES, strict=True)):
        return None
    row, source, task, body, unix_s, boot_s, boot_id, synced = values
    try:
        result = json.loads(zlib.decompress(body))
    except (ValueError, zlib.error):
        return None
    if not isinstance(result, dict) or type(result.get("seq")) is not int:
        return None
    made = Stamp(unix_s, boot_s, boot_id, None if synced is None else bool(synced))
    return Entry(row, source, task, result, len(body), made)


def name_bytes(name: str) -> bytes:
    """File names may be any bytes; SQLite's TEXT may not."""
    return name.encode("utf-8", "surrogatepass")


def version_of(file: FileKey) -> str:
    """What changes with the file. As text: a file's date may lie beyond what 64 bits of nanoseconds hold."""
    return f"{file.mtime_ns} {file.size_bytes}"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not that the disk cannot be used."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it says where in SQLite
    return isinstance(error, DamagedError) or code in _DAMAGE


def is_locked(error: Exception) -> bool:
    """Whether an error says that another process has the file open."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def reason(error: Exception, path: Path) -> str:
    """What is wrong, in words for the owner of the board, and what to do."""
    code, directory = getattr(error, "sqlite_errorcode", 0) & 0xFF, path.parent
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: free some space where {directory} is"
    if _read_only(directory):
        return f"the disk is read-only: mount {directory} writable (Linux makes a failing card read-only; see dmesg)"
    if directory.is_dir() and not os.access(directory, os.W_OK):
        return f"{directory} cannot be written: give it to the service's user, or set another state_dir"
    if code == sqlite3.SQLITE_IOERR or getattr(error, "errno", None) == errno.EIO:
        return f"{path} cannot be read or written ({error}): the card or disk may be failing; see dmesg"
    return f"{path} cannot be used: {error}"


def _read_only(directory: Path) -> bool:
    """Of the nearest directory that exists."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False
