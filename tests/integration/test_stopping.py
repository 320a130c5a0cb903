"""The service is told to stop while a caption is in work that does not come to its end."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

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
            wait_for("another one", lambda: service.log().count(" is in work") == 2)
            yield service
            assert "Traceback" not in service.log()
            assert not worker.is_running()


def test_it_has_its_grace_once(busy: Service) -> None:
    start_s = time.monotonic()
    assert busy.end() == 0
    assert GRACE_S <= time.monotonic() - start_s < 1.8 * GRACE_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_service_at_once(busy: Service, number: signal.Signals) -> None:
    assert busy.process is not None
    start_s = time.monotonic()
    busy.process.send_signal(number)
    wait_for("it stops", lambda: "stopping" in busy.log())
    assert busy.end(number) == 0
    assert time.monotonic() - start_s < GRACE_S
