"""A folder full of hostile files, seen by the whole service: each is told of once, and nothing is harmed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.bombs import jpeg_of_scans
from tests.hostile import Hostile, make
from tests.integration.service import Service, running, subscribed, wait_for


def test_each_hostile_file_is_reported_once_and_the_next_good_picture_is_captioned(
    tmp_path: Path, broker: Broker
) -> None:
    service = Service(
        tmp_path, broker.port, source={"settle_s": 0.1}, model={"max_tokens": 24, "silence_timeout_s": 600}
    )
    cases = [case for case in make(service.inbox) if not spared(service, case)]
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
            timeout_s=300,
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


def spared(service: Service, case: Hostile) -> bool:
    """Whether this is one of dozens of right pictures with wrong metadata, which the grabber's own test reads; removed.

    Each would be one more caption of the same scene.
    """
    alike = not case.reason and case.name.startswith(("profile-", "tag-", "orientation-"))
    if alike:
        (service.inbox / case.name).unlink()
    return alike


def test_a_picture_that_takes_too_long_is_reported_once_and_the_next_is_captioned(
    tmp_path: Path, broker: Broker
) -> None:
    service = Service(tmp_path, broker.port, source={"settle_s": 0.1, "decode_timeout_s": 1})
    (service.inbox / "a-slow.jpg").write_bytes(jpeg_of_scans(4_000, 4_000, 20_000))
    with subscribed(broker.port) as subscriber, running(service):
        wait_for("it is reported", lambda: "reading it ended the grabber twice" in service.log())
        [(picture, truth)] = sample_pictures(tmp_path / "samples", 1, seed=61)
        shutil.move(picture, service.inbox / "good.png")
        [result] = wait_for("the good picture", subscriber.results)
        assert service.end() == 0
    assert (result["file"], result["caption"]) == ("good.png", truth)
    [reported] = re.findall(r"WARNING source inbox: (.*a-slow.jpg.*)", service.log())
    assert "was ended by SIGPROF (its processor time for one picture was used up: decode_timeout_s)" in reported
