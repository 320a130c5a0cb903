"""The book of the daemon: results that the broker has not confirmed yet, and files that were dealt with.

SQLite in WAL mode with `synchronous=FULL`: a result that `put` returned for survives a power cut. A result
and the mark "this file was dealt with" are one transaction, so a file is neither captioned twice nor
forgotten. Knows nothing of MQTT or of what a result says.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.errors import UnavailableError
from edge_daemon.messages import FileKey

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    body TEXT NOT NULL,
    written_at_s REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS dealt_with (
    source TEXT NOT NULL,
    name BLOB NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (source, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sequence (source TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """One result that waits for the broker."""

    row: int
    source: str
    body: dict[str, Any]
    written_at_s: float
    """Unix time."""


class Outbox:
    """One open database file."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises UnavailableError when that is not possible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path = path
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"{path}: the outbox cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file; what it holds stays."""
        self._db.close()

    def put(self, source: str, results: Sequence[dict[str, Any]], file: FileKey | None) -> None:
        """Keep results, each given its `seq`, and mark the file they are about, all or nothing.

        Raises UnavailableError when that is not possible, most likely because the disk is full.
        """
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                for result in results:
                    body = json.dumps({**result, "seq": self._next(source)})
                    self._db.execute(
                        "INSERT INTO outbox (source, body, written_at_s) VALUES (?, ?, ?)", (source, body, time.time())
                    )
                if file is not None:
                    self._db.execute(
                        "INSERT OR REPLACE INTO dealt_with VALUES (?, ?, ?)", (source, _name(file), _version(file))
                    )
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path}: a result cannot be kept: {error}") from error

    def wanted(self, source: str, files: Sequence[FileKey]) -> list[bool]:
        """Which of the files have not been dealt with as they are now."""
        query = "SELECT version FROM dealt_with WHERE source = ? AND name = ?"
        return [self._db.execute(query, (source, _name(file))).fetchone() != (_version(file),) for file in files]

    def head(self, count: int, behind: int = 0) -> list[Entry]:
        """The oldest entries behind a row, in order."""
        rows = self._db.execute(
            "SELECT row, source, body, written_at_s FROM outbox WHERE row > ? ORDER BY row LIMIT ?", (behind, count)
        )
        return [Entry(row, source, json.loads(body), written_at_s) for row, source, body, written_at_s in rows]

    def last_row(self) -> int:
        """The row of the newest entry that waits, 0 when there is none; later ones have higher rows."""
        return int(self._db.execute("SELECT coalesce(max(row), 0) FROM outbox").fetchone()[0])

    def delete(self, row: int) -> None:
        """Forget an entry: the broker has it."""
        self._db.execute("DELETE FROM outbox WHERE row = ?", (row,))

    def __len__(self) -> int:
        """Entries that wait."""
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def _next(self, source: str) -> int:
        """The source's next number; numbers are never used twice, so that a gap shows a loss."""
        return int(
            self._db.execute(
                "INSERT INTO sequence VALUES (?, 1) ON CONFLICT (source) DO UPDATE SET last = last + 1 RETURNING last",
                (source,),
            ).fetchone()[0]
        )


def _name(file: FileKey) -> bytes:
    """File names may be any bytes; SQLite's TEXT may not."""
    return file.name.encode("utf-8", "surrogatepass")


def _version(file: FileKey) -> str:
    """What changes with the file. As text: a file's date may lie beyond what 64 bits of nanoseconds hold."""
    return f"{file.mtime_ns} {file.size_bytes}"
