"""Which marks of files that were dealt with may be forgotten: those of files that are gone from their folder.

Else a folder whose files come and go would have the outbox grow for years. Only the grabber looks into the folder, and
a mark is added only for a file that it offers. So it is asked then whether CHECKED other files are still there for
each new one, in turn through the whole table. With KEPT marks and fewer nothing is asked and nothing forgotten; beyond
that there are never many more than twice as many marks as files.

A mark is forgotten only when its file is not there. A file that was away meanwhile and comes back may be captioned
again, with the same ids.
"""

from __future__ import annotations

import random

from edge_daemon.book import Book

KEPT = 20_000
"""Of about 100 bytes each."""
CHECKED = 2
"""With one, the table would still grow, ever slower: what is still there takes up checks as well."""
MOST = 100
"""Names in one question, which has to be a short message; the others wait for the next one."""


class Rounds:
    """Through the marks of every source."""

    def __init__(self) -> None:
        self._due: dict[str, int] = {}
        self._last: dict[str, bytes] = {}

    def next(self, source: str, new: int, book: Book) -> list[str]:
        """Names to ask for, now that so many files are new. Raises sqlite3.Error."""
        if book.file_count <= KEPT:
            return []
        due = self._due.get(source, 0) + CHECKED * new
        count = min(due, MOST)
        self._due[source] = due - count
        if source not in self._last:  # not always from the first on: the daemon may be started every day
            self._last[source] = book.nth_name(source, random.randrange(book.file_count))
        names = book.names(source, self._last[source], count)
        if len(names) < count:
            names += book.names(source, b"", count - len(names))
        if names:
            self._last[source] = names[-1]
        return [name.decode("utf-8", "surrogatepass") for name in dict.fromkeys(names)]
