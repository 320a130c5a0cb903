"""Opens the outbox's file, or makes a new one of it: of a damaged one, or of one that lost its name while it was open.

What can still be read goes into the new file; a damaged file is kept aside. Whatever goes wrong comes out as
sqlite3.Error or OSError, and then all is as it was.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from edge_daemon.book import Book, is_damage
from edge_daemon.salvage import Salvaged, put_back, salvage, salvage_file, set_aside

log = logging.getLogger(__name__)


def opened(path: Path) -> Book:
    """The file as a book; a damaged one is replaced by what can be read of it."""
    try:
        return Book(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return renewed(path, str(error))


def renewed(path: Path, why: str) -> Book:
    """Keep a damaged file aside, and fill a fresh one from it."""
    aside = set_aside(path)
    book = None
    try:
        book = Book(path)
        found = salvage_file(aside, book)
    except (sqlite3.Error, OSError):
        if book is not None:
            book.close()
        put_back(aside, path)
        raise
    _report(path, f"damaged: {why}", found, f"is kept as {aside.name}")
    return book


def made_anew(old: Book, why: str, next_row: int) -> Book:
    """A file for one that is open and has no name any more, and can be read all the same; its rows are new ones."""
    old.give_up_name()
    book = opened(old.path)
    _report(old.path, why, salvage(old.connection, book, max(next_row, book.last_row + 1)), "is made anew")
    old.close()
    return book


def _report(path: Path, why: str, found: Salvaged, fate: str) -> None:
    log.error(
        "%s: %s; it %s; %d results and %d marks of files were read from it%s",
        path,
        why,
        fate,
        found.entries,
        found.files,
        "" if found.complete else "; files without a mark are captioned again, with the same ids",
    )
