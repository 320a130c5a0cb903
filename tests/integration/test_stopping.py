"""The service is told to stop while a caption is in work that does not come to its end; and the demo is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.integration.service import Service, running, subscribed, wait_for

GRACE_S = 10.0


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Service]:
    """Its worker has stopped in the middle of a caption."""
    (tmp_path / "broker").mkdir()
    (picture, _), (other, _) = sample_pictures(tmp_path / "samples", 2, seed=6)
    with Broker(tmp_path / "broker") as broker, subscribed(broker.port) as heard:
        service = Service(tmp_path, broker.port, log_level="debug", model={"stop_grace_s": GRACE_S})
        shutil.copy(picture, service.inbox)
        with running(service):
            wait_for("a caption", lambda: heard.results("inbox/event"))
            worker = service.child("edge_daemon.worker")
            assert worker is not None
            worker.suspend()
            shutil.copy(other, service.inbox)
            wait_for("another one", lambda: service.log().count(": captioning ") == 2)
            yield service
            assert "Traceback" not in service.log()
            assert not worker.is_running()


def test_it_has_its_grace_once(busy: Service) -> None:
    start_s = time.monotonic()
    assert busy.end() == 0
    assert GRACE_S <= time.monotonic() - start_s < 1.8 * GRACE_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "edge_daemon", "demo", "--pictures", "60"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("scene-01"):
            break
    started = psutil.Process(demo.pid).children(recursive=True)
    assert len(started) > 1
    demo.send_signal(number)
    try:
        assert demo.wait(60) == 1
        assert [process for process in started if process.is_running()] == []
    finally:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert demo.stdout.read().endswith("edge-daemon: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_service_at_once(busy: Service, number: signal.Signals) -> None:
    assert busy.process is not None
    start_s = time.monotonic()
    busy.process.send_signal(number)
    wait_for("it stops", lambda: "stopping" in busy.log())
    assert busy.end(number) == 0
    assert "within 0 s" not in busy.log(), "it had no time"
    assert time.monotonic() - start_s < GRACE_S
