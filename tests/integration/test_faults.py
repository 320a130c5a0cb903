"""The parts of the daemon that are not the worker: stuck, dead, babbling; it lives, says so once, and goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from edge_daemon import capture, daemon, folder_capture, restart_policy
from edge_daemon.config import Config
from edge_daemon.daemon import Daemon
from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.folder_capture import FolderCapture
from edge_daemon.messages import Frame
from edge_daemon.outbox import Limits, Outbox
from edge_daemon.source_config import FolderConfig
from tests.integration.listening import LONG_S, count_calls, process_of, until

LIMITS = Limits(1 << 26, 1e6)


def config(tmp_path: Path, port: int, **model: object) -> Config:
    (tmp_path / "inbox").mkdir()
    source = {"type": "folder", "path": str(tmp_path / "inbox"), "settle_s": 0, "rescan_s": 1}
    settings = {"node": "test", "state_dir": str(tmp_path), "mqtt": {"port": port}, "model": model}
    return Config.model_validate({**settings, "sources": {"inbox": source}})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children come again at once, and may be silent for a moment only."""
    for module in (restart_policy, folder_capture):
        monkeypatch.setattr(module, "LONGEST_DELAY_S", 0.05)
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.02)
    for module in (capture, folder_capture):
        monkeypatch.setattr(module, "SILENCE_S", 1.0)
    monkeypatch.setattr(capture, "STOP_GRACE_S", 0.2)


async def test_what_is_said_of_the_sources_is_known_before_a_broker_takes_us(tmp_path: Path) -> None:
    """The broker may have kept `online` of a service that was killed."""
    changed = asyncio.Event()
    outbox = Outbox(tmp_path / "outbox.db", LIMITS, on_change=changed.set)
    made = Daemon(config(tmp_path, 1), tmp_path, outbox, changed)
    known: list[str] = []
    made.connection.start = lambda: known.extend(made.connection.retained.availability())  # type: ignore[method-assign]
    made.stop()
    await made.run()
    outbox.close()
    assert known == ["edge-daemon/test/inbox/availability", "edge-daemon/test/availability"]


# ---- the grabber ----------------------------------------------------------------------------------------


class Captured:
    """A source with its real grabber, and what it delivers."""

    def __init__(self, tmp_path: Path) -> None:
        self.settings = config(tmp_path, 1)
        self.outbox = Outbox(tmp_path / "outbox.db", LIMITS)
        self.frames: list[Frame] = []
        source = self.settings.sources["inbox"].model_copy(update={"decode_timeout_s": 1.0})
        assert isinstance(source, FolderConfig)
        self.capture = FolderCapture("inbox", source, self.outbox, self._deliver, lambda: None, lambda: None)

    async def _deliver(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.outbox.put("inbox", [], frame.file)

    def grabber(self) -> psutil.Process | None:
        return next((c for c in psutil.Process().children() if "edge_daemon.grabber" in " ".join(c.cmdline())), None)


@asynccontextmanager
async def captured(tmp_path: Path) -> AsyncIterator[Captured]:
    made = Captured(tmp_path)
    task = asyncio.create_task(made.capture.run())
    try:
        yield made
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        made.outbox.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSTOP, "the grabber inbox sent nothing for 6 s and was killed; next start in"),
        (signal.SIGKILL, "the grabber inbox was ended by SIGKILL"),
        (signal.SIGSEGV, "the grabber inbox was ended by SIGSEGV"),
    ],
)
async def test_a_grabber_that_stops_or_dies_is_told_and_replaced(
    tmp_path: Path,
    number: signal.Signals,
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_capture, "SILENCE_S", 6.4)  # a good one says something every 5 s
    async with captured(tmp_path) as made:
        state = made.capture.state
        await until("it watches", lambda: state.phase == "online")
        first = made.grabber()
        assert first is not None
        first.send_signal(number)
        await until("it is seen", lambda: state.phase == "offline")
        assert words in state.last_problem["reason"]
        await until("there is another", lambda: state.phase == "online")
        assert not first.is_running()
        ((path, _),) = sample_pictures(tmp_path / "samples", 1, seed=3)
        path.rename(tmp_path / "inbox" / path.name)
        await until("it delivers", lambda: made.frames)
    told = [record for record in caplog.records if record.name == "edge_daemon.capture" and record.levelno > 20]
    assert len(told) == 1


async def test_a_grabber_that_dies_for_ever_is_not_told_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    """As when a library is broken; and nothing is left of a hundred of them."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with captured(tmp_path) as made:
        await until("it died often", lambda: made.capture.state.problems > 20)
        held = len(os.listdir("/proc/self/fd"))
        await until("it died a hundred times", lambda: made.capture.state.problems > 120)
        assert len(os.listdir("/proc/self/fd")) <= held + 6, "one may be running"
        assert len(psutil.Process().children()) <= 1
        assert made.capture.state.phase == "offline"
    told = [record for record in caplog.records if record.name == "edge_daemon.capture" and record.levelno > 20]
    assert 1 <= len(told) < 10


# ---- all children at once -------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_whatever_children_say_the_daemon_lives(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real daemon with real children that speak the protocol badly, in every state."""
    caplog.set_level(logging.INFO)
    settings = config(tmp_path, broker.port, silence_timeout_s=1, start_timeout_s=5, stop_grace_s=0.5)
    (tmp_path / "lives").mkdir()
    monkeypatch.setenv("RUBBISH_DIR", str(tmp_path / "lives"))
    shim = str(Path(__file__).with_name("rubbish_child.py"))
    monkeypatch.setattr(sys, "executable", shim)
    monkeypatch.setattr(daemon, "HEALTH_PAUSE_S", 0.05)
    changed = asyncio.Event()
    outbox = Outbox(tmp_path / "outbox.db", LIMITS, on_change=changed.set)
    before = sorted(os.listdir("/proc/self/fd"))
    ours = Daemon(settings, tmp_path, outbox, changed)
    ours.captioner._command = (shim, "-P", "-m", "edge_daemon.worker")
    running = asyncio.create_task(ours.run())

    def lives(kind: str) -> int:
        return len(list((tmp_path / "lives").glob(f"{kind}-*")))

    async with asyncio.timeout(5 * LONG_S):
        while not running.done() and (lives("grabber") < 25 or lives("worker") < 3):
            await asyncio.sleep(0.05)
    if running.done():
        await running
    assert outbox.dropped("refused") == 0
    await until("some was captioned and all is delivered", lambda: ours.captures["inbox"].state.captioned > 5)
    ours.stop()
    await running
    assert [child for child in psutil.Process().children() if child.is_running()] == [process_of(broker.port)]
    # one client may still hold its pair of sockets; with dozens of children, a leak would be of dozens
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 2
    outbox.close()
    assert not [r for r in caplog.records if r.exc_info or (r.name == "asyncio" and r.levelno > 20)], (
        "nothing was raised where nobody looks"
    )


# ---- a task that makes no progress ----------------------------------------------------------------------


async def test_a_stuck_task_is_told_once_and_stands_in_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And systemd is told nothing more, until it goes on."""
    monkeypatch.setattr(daemon, "WATCH_S", 0.01)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    listener.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    changed = asyncio.Event()
    outbox = Outbox(tmp_path / "outbox.db", LIMITS, on_change=changed.set)
    ours = Daemon(config(tmp_path, 1), tmp_path, outbox, changed)
    watching = asyncio.create_task(ours._watch())

    def fed() -> bool:
        with suppress(BlockingIOError):
            return listener.recv(100) == b"WATCHDOG=1"
        return False

    await until("the watchdog is fed", fed)
    beat = ours.progress.expect("thumb twiddling", 0.0)
    await until("it is told", lambda: caplog.records)
    while fed():
        pass
    looks = count_calls(ours.progress, "news")
    await until("it has looked again", lambda: len(looks) > 2)
    assert not fed()
    assert ours.health.document()["stuck"] == ["thumb twiddling"]
    ours.progress.allow("thumb twiddling", 1e9)
    beat()
    await until("the watchdog is fed", fed)
    watching.cancel()
    assert ours.health.document()["stuck"] == []
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "no progress: thumb twiddling",
        "goes on again: thumb twiddling",
    ]
    listener.close()
    outbox.close()
