"""The small files of the state directory: whole at any moment, and written only when there is something to write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_daemon import state_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


def test_what_the_file_says_already_is_not_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    state_file.replace(path, {"porch": {"enabled": False}})
    inode, writes = path.stat().st_ino, len(synced)
    for _ in range(100):
        state_file.replace(path, {"porch": {"enabled": False}})
    assert (path.stat().st_ino, len(synced)) == (inode, writes)
    state_file.replace(path, {"porch": {"enabled": True}})
    assert state_file.read(path) == {"porch": {"enabled": True}}
    assert len(synced) == 2 * writes


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None], ids=["empty", "half", "no text", "a directory"])
def test_what_stands_there_instead_is_replaced_or_told(path: Path, content: bytes | None) -> None:
    if content is None:
        path.mkdir()
        with pytest.raises(OSError, match="Is a directory"):
            state_file.replace(path, {"porch": {}})
        return
    path.write_bytes(content)
    state_file.replace(path, {"porch": {}})
    assert state_file.read(path) == {"porch": {}}


def test_a_file_that_was_deleted_is_there_again(path: Path) -> None:
    state_file.replace(path, {"porch": {}})
    path.unlink()
    state_file.replace(path, {"porch": {}})
    assert state_file.read(path) == {"porch": {}}
