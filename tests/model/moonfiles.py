"""Reading a whole moonfile in one call, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_daemon.models.container import Digest, Moonfile, Record


def read_records(path: Path) -> Iterator[Record]:
    """All records of a moonfile, as `Moonfile.records` gives them."""
    with Moonfile(path) as moonfile:
        yield from moonfile.records()


def digest_of(path: Path) -> Digest:
    """Of an unpacked moonfile, in one pass over it. Raises ModelError when it is damaged."""
    with Moonfile(path) as moonfile:
        for _ in moonfile.records():
            pass
        return moonfile.digest()
