"""A folder, its real grabber and the outbox: what is told of broken files, and what is forgotten."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import broken_files, capture, child, folder_capture, grabber_settings, rounds
from edge_daemon.child import Child
from edge_daemon.errors import PictureError
from edge_daemon.folder_capture import FolderCapture
from edge_daemon.messages import Frame
from edge_daemon.outbox import Outbox
from edge_daemon.source_config import FolderConfig
from tests.hostile import encode, scene
from tests.integration.listening import until

JPEG = encode(scene(40, 30), "JPEG")


class Watched:
    """A folder that is captured; every picture is dealt with as if it were captioned."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "inbox"
        self.folder.mkdir()
        self.outbox = Outbox(directory / "outbox.db")
        self.pictures: list[str] = []
        self.beats = 0
        config = FolderConfig(type="folder", path=self.folder, settle_s=0.1, rescan_s=1.0)
        self.capture = FolderCapture("inbox", config, self.outbox, self._deliver, self._beat, lambda: None)

    async def _deliver(self, frame: Frame) -> None:
        assert frame.file is not None
        self.pictures.append(frame.file.name)
        self.outbox.put("inbox", [], frame.file)

    def _beat(self) -> None:
        self.beats += 1

    async def until(self, probe: Callable[[], bool]) -> None:
        """Capture meanwhile."""
        capturing = asyncio.create_task(self.capture.run())
        await until("what is captured", lambda: capturing.done() or probe())
        assert not capturing.done(), capturing.exception()
        capturing.cancel()
        await asyncio.wait([capturing])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.outbox.close()


async def test_of_many_broken_files_the_journal_has_a_sum_and_health_and_outbox_each(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broken_files, "TOLD", 5)
    for number in range(300):
        (watched.folder / f"{number:03}.jpg").write_bytes(b"\xff\xd8 no picture")
    await watched.until(lambda: watched.capture.state.problems == 300)
    (watched.folder / "good.jpg").write_bytes(JPEG)
    await watched.until(lambda: watched.pictures == ["good.jpg"])
    assert watched.capture.state.problems == 300, "each is dealt with, and never offered again"
    assert watched.capture.state.last_problem["where"].startswith(str(watched.folder))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 6, lines
    assert "source inbox: 295 more files could not be read; the last one: " in lines[-1]
    assert f"{watched.folder}/" in lines[-1]


async def test_of_files_that_are_gone_nothing_is_kept(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "KEPT", 10)
    stays = watched.folder / "stays.jpg"
    stays.write_bytes(JPEG)
    for number in range(40):
        (watched.folder / f"{number}.jpg").write_bytes(JPEG)
    await watched.until(lambda: len(watched.pictures) == 41)
    for number in range(40):
        (watched.folder / f"{number}.jpg").unlink()
    new = iter(range(1000))

    def all_forgotten() -> bool:
        """Another file, whenever the last one was captioned."""
        if len(watched.pictures) == 41 + len(list(watched.folder.glob("new-*"))):
            (watched.folder / f"new-{next(new)}.jpg").write_bytes(JPEG)
        book = watched.outbox._book
        return book is not None and not [n for n in book.names("inbox", b"", 1000) if n[:1].isdigit()]

    await watched.until(all_forgotten)
    assert watched.pictures.count("stays.jpg") == 1
    assert len(list(watched.folder.glob("new-*"))) < 45, "two for each new one"


async def test_what_waits_for_its_caption_is_not_read_again_by_the_next_grabber(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Frame] = []

    async def deliver(frame: Frame) -> None:
        waiting.append(frame)
        watched.pictures.append(frame.file.name if frame.file else "")

    monkeypatch.setattr(watched.capture, "_deliver", deliver)
    for number in range(2):
        (watched.folder / f"{number}.jpg").write_bytes(JPEG)
    await watched.until(lambda: len(waiting) == 2)
    (watched.folder / "2.jpg").write_bytes(JPEG)
    await watched.until(lambda: "2.jpg" in watched.pictures)
    assert watched.pictures == ["0.jpg", "1.jpg", "2.jpg"], "another grabber each time"
    del waiting[0]  # one got lost on its way to the worker
    gc.collect()
    await watched.until(lambda: len(watched.pictures) == 4)
    assert watched.pictures[3] == "0.jpg"


async def test_beside_a_grabber_that_hangs_in_the_kernel_no_other_is_started(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Child] = []
    start = Child.start

    async def remember(*arguments: Any, **keywords: Any) -> Child:
        started.append(await start(*arguments, **keywords))
        return started[-1]

    def stop_it(grabber: Child) -> None:
        os.kill(grabber.pid, signal.SIGSTOP)  # as good as a kernel that keeps it: it hears nothing

    def hangs() -> bool:
        return watched.capture.state.last_problem.get("reason") == capture.HANGS

    monkeypatch.setattr(Child, "start", remember)
    monkeypatch.setattr(Child, "_kill_session", stop_it)
    monkeypatch.setattr(child, "REAP_S", 0.1)
    monkeypatch.setattr(capture, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(folder_capture, "SILENCE_S", 0.1)  # shorter than it is silent at rest
    capturing = asyncio.create_task(watched.capture.run())
    await until("it is started", lambda: started)
    try:
        await until("it hangs", hangs)
        with pytest.raises(PictureError, match="stuck in the kernel"):
            await watched.capture.current()
        beats = watched.beats
        await until("it has looked again", lambda: watched.beats > beats + 2)  # every second
        assert (len(started), watched.capture.state.phase) == (1, "offline")
        assert caplog.text.count("is stuck in the kernel and cannot be killed") == 1
        assert caplog.text.count("cannot be killed; it is stuck") == 1
    finally:
        monkeypatch.undo()
        os.kill(started[0].pid, signal.SIGKILL)
    (watched.folder / "0.jpg").write_bytes(JPEG)
    await until("it goes on", lambda: watched.pictures == ["0.jpg"])
    capturing.cancel()
    await asyncio.wait([capturing])


@pytest.fixture
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grabber's kernel tells it of no changes: it is in a user namespace of its own."""
    limit = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    argv = grabber_settings.argv()
    monkeypatch.setattr(grabber_settings, "argv", lambda config: [*prefix, *argv])


@pytest.mark.usefixtures("no_inotify")
async def test_a_folder_whose_pictures_are_seen_late_is_online_and_says_so_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[str] = []
    monkeypatch.setattr(watched.capture, "_on_change", lambda: states.append(watched.capture.state.phase))
    (watched.folder / "0.jpg").write_bytes(JPEG)
    await watched.until(lambda: "only seen at the next rescan" in watched.capture.state.last_problem.get("reason", ""))

    def three() -> bool:
        """One after the other."""
        if len(watched.pictures) == len(list(watched.folder.iterdir())) < 3:
            (watched.folder / f"{len(watched.pictures)}.jpg").write_bytes(JPEG)
        return len(watched.pictures) == 3

    await watched.until(three)
    assert set(states) == {"online"}
    assert caplog.text.count("only seen at the next rescan") == 1, "also by the next grabber"
