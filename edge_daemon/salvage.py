"""What can still be read of a damaged outbox, into a fresh one; the damaged file is kept aside.

Rows are read from both ends as far as that goes, and those in between one by one. What cannot be read is lost:
results, or the knowledge that a file was dealt with, which then is captioned once more, with the same ids.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_daemon.book import ENTRY_COLUMNS, Book, entry_of

KEPT = 3
"""Damaged files that are kept; each may be as large as the outbox."""
LOOKUPS = 20_000
"""Rows between the two ends that are asked for one by one."""
COMPANIONS = ("", "-wal")


@dataclass
class Salvaged:
    """What came of it."""

    entries: int = 0
    files: int = 0
    complete: bool = True
    """Whether all was read; more cannot be known."""
    last_seq: dict[str, int] = field(default_factory=dict)


def set_aside(path: Path) -> Path:
    """Rename a database and its log to the next free NAME.damaged-N; the oldest of many is removed. Raises OSError."""
    numbers = sorted(_numbers(path))
    aside = path.with_name(f"{path.name}.damaged-{(numbers or [0])[-1] + 1}")
    for companion in COMPANIONS:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{companion}", f"{aside}{companion}")
    for number in numbers[: len(numbers) + 1 - KEPT]:
        for companion in COMPANIONS:
            path.with_name(f"{path.name}.damaged-{number}{companion}").unlink(missing_ok=True)
    return aside


def put_back(aside: Path, path: Path) -> None:
    """Undo `set_aside`, over a fresh file that could not be filled. Raises OSError."""
    for companion in COMPANIONS:
        Path(f"{path}{companion}").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.replace(f"{aside}{companion}", f"{path}{companion}")


def damaged_files(path: Path) -> list[str]:
    """The names of those that are kept aside."""
    return [f"{path.name}.damaged-{number}" for number in sorted(_numbers(path))]


def _numbers(path: Path) -> list[int]:
    pattern = re.compile(re.escape(path.name) + r"\.damaged-(\d+)")
    try:
        return [int(found[1]) for name in os.listdir(path.parent) if (found := pattern.fullmatch(name))]
    except OSError:
        return []


def salvage_file(damaged: Path, book: Book) -> Salvaged:
    """Copy what can be read of a closed file; the file itself stays as it is.

    Raises sqlite3.Error of `book`, and where the disk has no room for the index of the file's log.
    """
    try:
        db = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return Salvaged(complete=False)
    try:
        with closing(db):
            _begin_reading(db)
            return salvage(db, book)
    finally:
        damaged.with_name(f"{damaged.name}-shm").unlink(missing_ok=True)


def _begin_reading(db: sqlite3.Connection) -> None:
    try:
        db.execute("PRAGMA writable_schema=ON")  # else nothing is read of a file that was cut short
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise  # later all of it may be read


def salvage(db: sqlite3.Connection, book: Book, first_row: int | None = None) -> Salvaged:
    """Copy what can be read, with its rows, or with rows counted from `first_row`. Raises sqlite3.Error of `book`."""
    found = Salvaged()
    book.restore(_entries(db, found, first_row), _files(db, found), _all_numbers(db, found))
    return found


def _entries(db: sqlite3.Connection, found: Salvaged, first_row: int | None) -> Iterator[Any]:
    for values in _from_both_ends(db, ENTRY_COLUMNS, "entries", "row", found):
        entry = entry_of(values)
        if entry is None:
            found.complete = False
            continue
        found.last_seq[entry.source] = max(found.last_seq.get(entry.source, 0), entry.body["seq"])
        row = entry.row if first_row is None else first_row + found.entries
        found.entries += 1
        yield (row, *values[1:])


def _files(db: sqlite3.Connection, found: Salvaged) -> Iterator[Any]:
    for values in _from_both_ends(db, "source, name, version", "files", "source, name", found):
        if [type(value) for value in values] != [str, bytes, str]:
            found.complete = False
            continue
        found.files += 1
        yield values


def _all_numbers(db: sqlite3.Connection, found: Salvaged) -> Iterator[Any]:
    """The counters; a source's is at least what its results say."""
    read = _from_both_ends(db, "name, value", "numbers", "name", found)
    numbers = {name: value for name, value in read if isinstance(name, str) and isinstance(value, int)}
    for source, seq in found.last_seq.items():
        numbers[f"seq/{source}"] = max(numbers.get(f"seq/{source}", 0), seq)
    yield from numbers.items()


def _from_both_ends(db: sqlite3.Connection, columns: str, table: str, key: str, found: Salvaged) -> Iterator[Any]:
    """All rows of a table that can be read, from the first on; after a hole those behind it, backwards."""
    width, last, first_behind = key.count(",") + 1, None, None
    for order in ("", " DESC"):
        try:
            for values in db.execute(f"SELECT {columns} FROM {table} ORDER BY {key.replace(',', order + ',')}{order}"):
                position = values[:width]
                if order and last is not None and position <= last:
                    return  # no hole after all
                if order:
                    first_behind = position
                else:
                    last = position
                yield values
        except (sqlite3.Error, UnicodeError):
            found.complete = False
            continue
        if not order:
            return
    if key == "row":
        yield from _one_by_one(db, columns, table, last[0] if last else 0, first_behind)


def _one_by_one(
    db: sqlite3.Connection, columns: str, table: str, last: int, first_behind: tuple[int] | None
) -> Iterator[Any]:
    """Rows in the hole whose own page is whole."""
    end = last + LOOKUPS if first_behind is None else min(first_behind[0], last + LOOKUPS)
    for row in range(last + 1, end):
        try:
            yield from db.execute(f"SELECT {columns} FROM {table} WHERE row = ?", (row,)).fetchall()
        except (sqlite3.Error, UnicodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                return  # no database, or without this table: the next row will not be there either
