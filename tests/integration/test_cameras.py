"""Cameras through the whole service: looked at, gated, captioned in turn, lost and found again, asked, switched off.

The cameras are programs (`type: command`) that show what the test puts before them; the streams have tests of their
own.
"""

from __future__ import annotations

import base64
import shutil
import signal
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.integration.service import Service, Subscriber, running, subscribed, wait_for
from tests.integration.test_commands import Line

CAMERA = Path(__file__).parent / "camera.py"
FAIR = ("one", "two", "three", "four", "five")
ENOUGH = 60
"""Results over which the turns are counted."""


def camera(directory: Path, **keys: Any) -> dict[str, Any]:
    """A source that shows `now.jpg` of a directory."""
    argv = [sys.executable, str(CAMERA), str(directory), "10"]
    return {"type": "command", "command": argv, "interval_s": 0.2, **keys}


class Stage:
    """What stands before a camera."""

    def __init__(self, directory: Path, count: int, seed: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.scenes = sample_pictures(directory, count, seed)
        self.show(0)

    def show(self, number: int) -> str:
        """Change the scene; what is right to say of it."""
        path, truth = self.scenes[number]
        fresh = self.directory / "next.jpg"
        shutil.copy(path, fresh)
        fresh.rename(self.directory / "now.jpg")
        return truth


def said(heard: Subscriber) -> list[str]:
    return [result["caption"] for result in heard.results("porch/event")]


def test_a_camera_from_morning_to_night(tmp_path: Path, broker: Broker) -> None:
    stage = Stage(tmp_path / "stage", 4, 7)
    sources = {"porch": camera(stage.directory, gate={"cooldown_s": 0})}
    service = Service(tmp_path, broker.port, sources=sources)
    with subscribed(broker.port) as heard, running(service):
        first = wait_for("the first caption", lambda: heard.results("porch/event"))[0]
        assert (first["caption"], first["trigger"]) == (stage.scenes[0][1], "first")
        assert "file" not in first

        line = Line(broker, service, heard, stage.scenes[0], stage.scenes[1])
        wait_for("a frame of the same is skipped", lambda: skipped(line, "unchanged"))
        wait_for("ten more are", lambda: skipped(line, "unchanged") >= 11)
        assert len(said(heard)) == 1, "also where frames passed while the model was at the first one"

        truth = stage.show(1)
        wait_for("the change is captioned", lambda: truth in said(heard))
        assert heard.results("porch/event")[-1]["trigger"] == "change"

        assert line.data("caption", source="porch")["caption"] == truth
        before = len(said(heard))
        line.send("porch/trigger", "-n")
        wait_for("a result on request", lambda: len(said(heard)) > before)
        assert heard.results("porch/event")[-1]["trigger"] == "request"
        assert "unchanged" not in heard.results("porch/event")[-1], "whoever asks gets the whole answer"

        lost(line, stage)
        switched(line, stage)
        assert service.end() == 0
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(stage.directory) in " ".join(p.info["cmdline"] or [])
    ]


def skipped(line: Line, why: str) -> int:
    return int(line.data("health_check")["sources"]["porch"]["skipped"].get(why, 0))


def program(stage: Stage) -> psutil.Process | None:
    """The camera's program."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-3:-1] == [str(CAMERA), str(stage.directory)]:
            return process
    return None


def lost(line: Line, stage: Stage) -> None:
    """The camera's program dies, and the grabber as well: told once each, opened again, captioned."""
    service, heard = line.service, line.heard
    found = program(stage)
    assert found is not None
    found.kill()
    wait_for("it is offline", lambda: heard.on("porch/availability")[-1].payload == b"offline")
    wait_for("it is back", lambda: heard.on("porch/availability")[-1].payload == b"online")
    grabber = wait_for("a grabber", lambda: service.child("edge_daemon.grabber"))
    grabber.send_signal(signal.SIGKILL)
    wait_for("it is offline again", lambda: [m.payload for m in heard.on("porch/availability")].count(b"offline") > 2)
    wait_for("it is back again", lambda: heard.on("porch/availability")[-1].payload == b"online")
    truth = stage.show(2)
    wait_for("what it sees now", lambda: truth in said(heard))
    assert service.log().count("was ended by SIGKILL") <= 2
    assert service.log().count("source porch: is back") == 2
    assert service.log().count("source porch: watching with") == 1, "not each time that it is opened again"


def switched(line: Line, stage: Stage) -> None:
    """Off closes the camera; on opens it. The interval can be set, and is kept."""
    service, heard = line.service, line.heard
    line.send("porch/enabled/set", "-m", "OFF")
    wait_for("its program is gone", lambda: program(stage) is None)
    wait_for("health says so", lambda: (heard.last_health() or {})["sources"]["porch"]["state"] == "off")
    assert (heard.last_health() or {})["state"] == "ok"
    assert "switched off" in line.refusal("caption", source="porch")
    line.send("porch/interval/set", "-m", "0.3")
    wait_for("the interval is told", lambda: heard.on("porch/interval/state")[-1].payload == b"0.3")
    assert '"interval_s": 0.3' in (service.directory / "state/settings.json").read_text()
    truth = stage.show(3)
    assert heard.on("porch/availability")[-1].payload == b"online", "it is as it is wanted, and its entities stay"
    line.send("porch/enabled/set", "-m", "ON")
    wait_for("what it sees now", lambda: truth in said(heard))


def test_eight_cameras_of_which_five_are_fine(tmp_path: Path, broker: Broker) -> None:
    """Two cannot be opened and one never delivers; the others have their turns all the same."""
    stage = Stage(tmp_path / "stage", 1, 7)
    sources = {name: camera(stage.directory, gate={"change": False, "cooldown_s": 0}) for name in FAIR}
    sources |= {
        "dead": {"type": "command", "command": ["false"]},
        "missing": {"type": "command", "command": ["/nonexistent/camera"]},
        "hanging": {"type": "command", "command": ["sleep", "600"], "open_timeout_s": 300},
    }
    service = Service(tmp_path, broker.port, sources=sources)
    with subscribed(broker.port) as heard, running(service):
        counts = wait_for("enough results", lambda: c if sum((c := turns(heard)).values()) >= ENOUGH else None)
        wait_for("the dead ones are told", lambda: {"dead", "missing"} <= offline(heard))
        assert service.end() == 0
    assert min(counts.values()) * 1.5 >= sum(counts.values()) / len(FAIR), counts
    assert set(counts) == set(FAIR)
    print(f"\nof {sum(counts.values())} results: {counts}")
    assert "'false'" in service.log()


def test_a_camera_that_is_being_opened_holds_up_nobody_who_asks_for_something_else(
    tmp_path: Path, broker: Broker
) -> None:
    stage, opened = Stage(tmp_path / "stage", 2, 7), tmp_path / "opened"
    quiet = {"from": "00:00", "to": "24:00"}
    ready, slow = (camera(stage.directory, gate={"quiet_hours": [dict(quiet)]}, open_timeout_s=300) for _ in range(2))
    slow["command"] = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.1; done; exec "$@"', str(opened), *slow["command"]]
    service = Service(tmp_path, broker.port, sources={"ready": ready, "slow": slow})
    with subscribed(broker.port) as heard, running(service):
        line = Line(broker, service, heard, stage.scenes[0], stage.scenes[1])
        wait_for(
            "the other one is there", lambda: [m.payload for m in heard.on("ready/availability")][-1:] == [b"online"]
        )
        line.send("request/caption", "-m", '{"source": "slow", "transaction": "slow"}')
        asked = ({"source": "ready"}, {"picture": base64.b64encode(stage.scenes[1][0].read_bytes()).decode()})
        assert [line.data("caption", **what)["caption"] for what in asked] == [truth for _, truth in stage.scenes]
        answers = heard.results("response/caption")
        assert not [answer for answer in answers if answer["transaction"] == "slow"], "it is not there yet"
        opened.touch()
        found = line.answer("response/caption", lambda answer: answer["transaction"] == "slow")
        assert found["data"]["caption"] == stage.scenes[0][1]
        assert service.end() == 0


def turns(heard: Subscriber) -> dict[str, int]:
    return {name: n for name in (*FAIR, "dead", "missing", "hanging") if (n := len(heard.on(f"{name}/event")))}


def offline(heard: Subscriber) -> set[str]:
    health = heard.last_health()
    return set() if health is None else {n for n, s in health["sources"].items() if s["state"] == "offline"}


def test_priority_gives_turns_and_what_is_said_again_is_not_published(tmp_path: Path, broker: Broker) -> None:
    stage = Stage(tmp_path / "stage", 1, 7)
    every = {"change": False, "cooldown_s": 0}
    sources = {
        "often": camera(stage.directory, gate=dict(every), interval_s=0.1, priority=3),
        "seldom": camera(stage.directory, gate=dict(every), interval_s=0.1),
        "silent": camera(stage.directory, gate=dict(every), interval_s=0.1, repeats="suppress"),
    }
    service = Service(tmp_path, broker.port, sources=sources)
    with subscribed(broker.port) as heard, running(service):
        wait_for("enough results", lambda: len(heard.on("often/event")) >= ENOUGH)
        often, seldom = (heard.results(f"{name}/event") for name in ("often", "seldom"))
        assert len(heard.on("silent/event")) == 1
        assert service.end() == 0
    print(f"\npriority 3: {len(often)} results, priority 1: {len(seldom)}")
    assert len(often) > len(seldom)
    assert "unchanged" not in often[0]
    assert all(result["unchanged"] for result in often[1:])
    assert [result["seq"] for result in seldom] == list(range(1, len(seldom) + 1))


def test_what_passed_while_the_model_was_busy_waits_for_the_cooldown(tmp_path: Path, broker: Broker) -> None:
    stage = Stage(tmp_path / "stage", 2, 7)
    porch = camera(stage.directory, gate={"change": False, "cooldown_s": 3}, interval_s=0.1)
    service = Service(tmp_path, broker.port, sources={"porch": porch})
    with subscribed(broker.port) as heard, running(service):
        wait_for("five captions", lambda: len(said(heard)) >= 5)
        assert service.end() == 0
    times = [datetime.fromisoformat(result["captured_at"]).timestamp() for result in heard.results("porch/event")]
    assert all(later - sooner >= 3 for sooner, later in pairwise(times))


def test_what_was_said_on_request_is_what_the_next_words_repeat(tmp_path: Path, broker: Broker) -> None:
    stage = Stage(tmp_path / "stage", 2, 7)
    often = {"change": False, "cooldown_s": 5}
    service = Service(tmp_path, broker.port, sources={"porch": camera(stage.directory, gate=often, repeats="suppress")})
    with subscribed(broker.port) as heard, running(service):
        truth = stage.scenes[0][1]
        wait_for("the first caption", lambda: said(heard) == [truth])
        line = Line(broker, service, heard, stage.scenes[0], stage.scenes[1])
        other = stage.show(1)
        wait_for("the camera sees it", lambda: line.data("caption", source="porch")["caption"] == other)
        line.send("porch/trigger", "-n")
        wait_for("it is said on request", lambda: said(heard)[-1] == other)
        stage.show(0)
        wait_for("the first scene is said again", lambda: said(heard)[-1] == truth, 30.0)
        assert service.end() == 0


def test_an_answer_that_two_pictures_have_to_give_is_believed_while_nothing_moves(
    tmp_path: Path, broker: Broker
) -> None:
    stage = Stage(tmp_path / "stage", 3, 7)
    question = {"id": "circle", "ask": "Is there a circle?", "type": "yes_no", "for_frames": 2}
    porch = camera(stage.directory, gate={"cooldown_s": 1}, questions=[question])
    with subscribed(broker.port) as heard, running(Service(tmp_path, broker.port, sources={"porch": porch})) as service:
        for number, there in ((0, False), (2, True), (0, False)):
            stage.show(number)
            wait_for(
                f"it is {there}",
                lambda there=there: [a["value"] for a in heard.results("porch/answer/circle")][-1:] == [there],  # type: ignore[misc]
                30.0,
            )
        before = len(heard.on("porch/caption"))
        time.sleep(5.0)
        assert len(heard.on("porch/caption")) == before, "what is believed is not looked at again"
        assert service.end() == 0
