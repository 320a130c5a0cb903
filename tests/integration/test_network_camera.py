"""From a real RTSP server to the broker: right captions, and back after everything that happens to the camera."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.language import short_caption
from edge_daemon.demo.scenes import draw, random_scene
from tests.cameras import RtspServer
from tests.integration.service import Service, Subscriber, running, subscribed, wait_for

LOGIN = {"username": "me", "password": "hush-hush"}
OPTIONS = ("--user", LOGIN["username"], "--password", LOGIN["password"])
"""Of the server."""
TWO_OR_THREE = {2: 1, 3: 1}
"""Things: one small star before a wall is hardly more than a wall, for the gate as for anybody."""


class Porch:
    """A camera whose scene changes, and what is right to say of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._dice = random.Random("porch")
        self.server = RtspServer(directory, *OPTIONS)

    def next_scene(self, size_px: tuple[int, int] = (640, 480)) -> str:
        """Show another scene; what the demo model has to say of it."""
        scene = random_scene(self._dice, TWO_OR_THREE)
        self.server.show(draw(scene, size_px))
        return short_caption(scene)

    def restart(self, *options: str) -> None:
        """Kill it, and start it at the same port."""
        port = self.server.port
        self.server.process.kill()
        self.server.process.wait()
        self.server = RtspServer(self._directory, *options, port=port)


@pytest.fixture
def porch(tmp_path: Path) -> Iterator[Porch]:
    (tmp_path / "camera").mkdir()
    made = Porch(tmp_path / "camera")
    yield made
    made.server.process.kill()
    made.server.process.wait()


def captioned(heard: Subscriber, truth: str) -> float:
    """Wait for these words; the seconds."""
    start_s = time.monotonic()
    wait_for(f"the caption {truth!r}", lambda: truth in [r["caption"] for r in heard.results("porch/event")])
    return time.monotonic() - start_s


def state(heard: Subscriber) -> str:
    found = heard.on("porch/availability")
    return found[-1].payload.decode() if found else ""


def source(porch: Porch, **keys: Any) -> dict[str, Any]:
    settings = {"type": "rtsp", "url": porch.server.url, **LOGIN, "interval_s": 0.2, "read_timeout_s": 3}
    return {**settings, "gate": {"cooldown_s": 0}, **keys}


def test_the_camera_is_captioned_rightly_whatever_happens_to_it(tmp_path: Path, broker: Broker, porch: Porch) -> None:
    recovered: dict[str, float] = {}
    truth = porch.next_scene()
    service = Service(tmp_path, broker.port, sources={"porch": source(porch)})
    with subscribed(broker.port) as heard, running(service):
        captioned(heard, truth)
        for _ in range(4):
            captioned(heard, porch.next_scene())

        porch.restart(*OPTIONS)
        recovered["server killed and started again"] = captioned(heard, porch.next_scene())

        porch.server.process.send_signal(signal.SIGSTOP)
        wait_for("a frozen camera is offline", lambda: state(heard) == "offline")
        porch.server.process.send_signal(signal.SIGCONT)
        recovered["stream frozen and thawed"] = captioned(heard, porch.next_scene())

        recovered["resolution changed"] = captioned(heard, porch.next_scene((800, 600)))

        porch.restart("--user", "me", "--password", "another")
        wait_for("the login is refused", lambda: "username" in problem(heard))
        porch.restart(*OPTIONS)
        recovered["password changed and changed back"] = captioned(heard, porch.next_scene())
        assert service.end() == 0
    print("\n" + "\n".join(f"{what}: {seconds:.1f} s" for what, seconds in recovered.items()))
    assert LOGIN["password"] not in service.log()
    assert not [m for m in heard.messages if LOGIN["password"].encode() in m.payload]


def problem(heard: Subscriber) -> str:
    health = heard.last_health() or {}
    return str(health.get("sources", {}).get("porch", {}).get("last_problem", {}).get("reason", ""))
