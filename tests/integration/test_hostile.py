"""A folder full of hostile files, seen by the whole service: each is told of once, and nothing is harmed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.hostile import make
from tests.integration.service import Service, running, subscribed, wait_for


def test_each_hostile_file_is_reported_once_and_the_next_good_picture_is_captioned(
    tmp_path: Path, broker: Broker
) -> None:
    service = Service(tmp_path, broker.port, source={"settle_s": 0.1})
    cases = make(service.inbox)
    assert len(cases) >= 60
    bad, good = [c for c in cases if c.reason], [c for c in cases if not c.reason]
    with subscribed(broker.port) as subscriber, running(service):
        wait_for(
            "all are dealt with",
            lambda: (
                (h := subscriber.last_health())
                and h["sources"]["inbox"]["captioned"] >= len(good)
                and h["sources"]["inbox"]["problems"] >= len(bad)
            ),
            timeout_s=120,
        )
        [(picture, truth)] = sample_pictures(tmp_path / "samples", 1, seed=60)
        shutil.move(picture, service.inbox / "zz-good.png")
        last = wait_for(
            "the good picture", lambda: [r for r in subscriber.results() if r["file"] == "zz-good.png"] or None
        )
        health = wait_for("health", subscriber.last_health)
        assert service.process is not None
        assert service.end() == 0
    assert last[0]["caption"] == truth
    assert health["worker"]["restarts"] == 0
    captioned = [r["file"] for r in subscriber.results()]
    assert sorted(captioned) == sorted([*(c.name for c in good), "zz-good.png"])
    reported = re.findall(r"WARNING source inbox: (.*)", service.log())
    assert len(reported) == len(set(reported)) == len(bad)
