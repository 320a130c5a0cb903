"""One picture on request, with a real grabber: the newest file of a folder, and pictures that came with a command."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest

from edge_daemon import snapshot
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import PictureError
from edge_daemon.source_config import FolderConfig
from tests.bombs import jpeg_of_scans


def folder(path: Path, pattern: str | None = None) -> FolderConfig:
    return FolderConfig(type="folder", path=path, pattern=pattern)


def dated(path: Path, unix_s: int) -> Path:
    os.utime(path, (unix_s, unix_s))
    return path


async def test_the_newest_file_of_a_folder_is_its_picture_now(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (older, _), (newer, _), (other, _) = sample_pictures(below, 3, seed=1)
    for path, unix_s in ((older, 1_000), (newer, 2_000), (other, 500)):
        dated(path, unix_s)
    dated(tmp_path, 9_000)
    (tmp_path / "notes.txt").write_text("newer, and no picture")
    frame = await snapshot.of_folder(folder(tmp_path), [])
    assert frame.file is not None
    assert frame.file.name == f"below/{newer.name}"
    assert frame.captured_at_s == 2_000
    assert len(frame.payload) == 3 * frame.width_px * frame.height_px
    only = await snapshot.of_folder(folder(tmp_path, pattern=other.name), [])
    assert only.file is not None
    assert only.file.name == f"below/{other.name}"


async def test_there_may_be_no_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"^the folder has no pictures$"):
        await snapshot.of_folder(folder(tmp_path), [])
    with pytest.raises(PictureError, match="deleted, moved or renamed"):
        await snapshot.of_folder(folder(tmp_path / "missing"), [])


async def test_the_newest_file_may_be_broken_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    with pytest.raises(PictureError, match=r"^half\.jpg: damaged or incomplete JPEG"):
        await snapshot.of_folder(folder(tmp_path), [])


async def test_a_link_to_a_secret_tells_nothing_of_it(tmp_path: Path) -> None:
    """Whoever may write into the folder, and may not read what we may, reads what we publish."""
    (tmp_path / "password").write_text("sesame\n")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "password")
    with pytest.raises(PictureError, match=r"^link\.jpg: not a picture: it is text$"):
        await snapshot.of_folder(folder(tmp_path), [])


async def test_bytes_are_decoded_and_leave_nothing_behind(tmp_path: Path) -> None:
    ((path, _),) = sample_pictures(tmp_path, 1, seed=1)
    gc.collect()  # of what tests before this one left open
    descriptors = psutil.Process().num_fds()
    frame = await snapshot.of_bytes(path.read_bytes())
    assert (frame.file, frame.width_px > 0) == (None, True)
    with pytest.raises(PictureError, match=r"^not a picture: it is text"):
        await snapshot.of_bytes(b"hello")
    assert psutil.Process().num_fds() <= descriptors
    assert not psutil.Process().children()


async def test_a_picture_that_takes_for_ever_ends_the_process_that_decodes_it(tmp_path: Path) -> None:
    """Of a source, whose limit can be set; bytes that come along have the usual one."""
    (tmp_path / "bomb.jpg").write_bytes(jpeg_of_scans(5000, 5000, 4000))
    limited = folder(tmp_path).model_copy(update={"decode_timeout_s": 1.0})
    with pytest.raises(PictureError, match=r"reading the picture: .*its processor time for one picture was used up"):
        await snapshot.of_folder(limited, [])
    assert not psutil.Process().children()


async def test_a_picture_with_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"at most 100\.0 million are decoded"):
        await snapshot.of_bytes(jpeg_of_scans(60_000, 60_000, 1))
