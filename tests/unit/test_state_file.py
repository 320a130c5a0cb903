"""The small files of the state directory: whole at any moment, and written only when there is something to write."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import state_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


def test_at_any_moment_the_disk_has_all_of_the_old_one_or_of_the_new_one(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is on the disk before it takes the name, and its name is before we go on."""
    synced, fsync = list[tuple[Any, Any]](), os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((file if file.is_dir() else json.loads(file.read_text()), state_file.read(path)))

    monkeypatch.setattr(os, "fsync", watched)
    gc.collect()  # of what tests before this one left open
    open_before = len(os.listdir("/proc/self/fd"))
    state_file.replace(path, {"it": "old"})
    state_file.replace(path, {"it": "new"})
    old, new = {"it": "old"}, {"it": "new"}
    assert synced == [(old, {}), (tmp_path, old), (new, old), (tmp_path, new)]
    assert os.listdir(tmp_path) == ["settings.json"]
    assert len(os.listdir("/proc/self/fd")) <= open_before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_one_that_is_damaged_is_an_error_of_one_kind(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        state_file.read(path)


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
