"""A small file that a power cut leaves as it was or as it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import state_file


def test_at_any_moment_the_disk_has_all_of_the_old_one_or_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is on the disk before it takes the name, and its name is before we go on."""
    path, synced, fsync = tmp_path / "settings.json", list[tuple[Any, Any]](), os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((file if file.is_dir() else json.loads(file.read_text()), state_file.read(path)))

    monkeypatch.setattr(os, "fsync", watched)
    open_before = len(os.listdir("/proc/self/fd"))
    state_file.replace(path, {"it": "old"})
    state_file.replace(path, {"it": "new"})
    old, new = {"it": "old"}, {"it": "new"}
    assert synced == [(old, {}), (tmp_path, old), (new, old), (tmp_path, new)]
    assert os.listdir(tmp_path) == ["settings.json"]
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_one_that_is_damaged_is_an_error_of_one_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        state_file.read(path)
