"""Heat and weak power, seen by the whole service: the sensors' files change while it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.thermal import LOWEST_DUTY
from tests.boards import Board
from tests.integration.service import Service, Subscriber, running, subscribed, wait_for

WORK_S = 1.0


def thermal(subscriber: Subscriber) -> dict[str, Any]:
    health = subscriber.last_health()
    return dict(health["thermal"]) if health else {}


def test_captions_pause_while_the_board_is_hot_and_no_longer_when_it_has_cooled(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path / "sys")
    board.temperature(45)
    board.alarm(under_voltage=False)
    board.throttled(0)
    monkeypatch.setenv("EDGE_DAEMON_SYS_DIR", str(board.directory))
    with subscribed(broker.port) as subscriber, running(Service(tmp_path, broker.port, log_level="debug")) as service:
        cool = wait_for("the first reading", lambda: (t := thermal(subscriber)).get("temperature_c") == 45 and t)
        assert (cool["duty"], cool["throttled"], cool["under_voltage"]) == (1.0, [], False)
        assert cool["source"] == "cpu-thermal, rpi_volt, get_throttled"
        board.temperature(85)
        board.alarm(under_voltage=True)
        board.throttled(0x70007)
        hot = wait_for("it is seen to be hot", lambda: (t := thermal(subscriber)).get("duty") == LOWEST_DUTY and t)
        assert (hot["throttled"], hot["under_voltage"]) == (["frequency_capped", "throttled"], True)
        assert hot["since_boot"] == ["under_voltage", "frequency_capped", "throttled"]
        take_long(service)
        slow = wait_for("a result", lambda: subscriber.results() and thermal(subscriber))
        wait_for("the pause is told", lambda: thermal(subscriber)["pause_s"] >= 4 * WORK_S)
        results = wait_for("both results", lambda: r if len(r := subscriber.results()) == 2 else None)
        # the second picture was ready while the first was in work, and waited until the pause was over
        assert results[1]["latency_ms"]["total"] >= 3 * WORK_S * 1000, slow
        board.temperature(45)
        board.alarm(under_voltage=False)
        board.throttled(0)
        wait_for("the duty rises", lambda: thermal(subscriber)["duty"] > LOWEST_DUTY)
        assert service.end() == 0
    log = service.log()
    assert log.count("the power supply is too weak: the board gets too little voltage") == 1
    assert log.count("the firmware slows the board down (a capped processor clock, a slowed-down processor)") == 1


def take_long(service: Service) -> None:
    """Two pictures, of which the first takes the worker WORK_S at least."""
    wait_for("the rehearsal is over", lambda: "a picture takes about" in service.log())
    worker = wait_for("a worker", lambda: service.child("edge_daemon.worker"))
    worker.suspend()
    for path, _ in sample_pictures(service.directory / "samples", 2, seed=30):
        path.rename(service.inbox / path.name)
    wait_for("the first is in work", lambda: ": captioning " in service.log())
    time.sleep(WORK_S)
    worker.resume()
