"""The grabber of picamera sources with the real picamera2 and libcamera, and libcamera's virtual camera.

By hand:

    sudo tests/picamera_real/make_root.sh /var/tmp/trixie                        (once: 1 to 4 minutes, 0.7 GB)
    sudo env EDGE_DAEMON_PICAMERA_ROOT=/var/tmp/trixie .venv/bin/python -m pytest tests/picamera_real

Not a part of CI, which has no minutes for it; there a stand-in does (test_picamera.py). The virtual
camera is no Raspberry Pi camera: virtual_camera.py says what had to be patched. It has no sensor mode, lens, exposure
or HDR, cannot turn the picture, and no device that could be in use: all that is known from the stand-in only.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_daemon.messages import GrabberReady
from edge_daemon.source_config import PicameraConfig
from tests.grabbers import DEADLINE_S, Grabber
from tests.integration import picamera_child
from tests.integration.picamera_child import pixels

HERE = Path(__file__).parent
ROOT = os.environ.get("EDGE_DAEMON_PICAMERA_ROOT", "")
PROGRAM = "import virtual_camera, runpy, sys; sys.argv[:1] = []; runpy.run_path(sys.argv[0], run_name='__main__')"
ARGV = [
    *(str(HERE / "in_root.sh"), ROOT, "LD_PRELOAD=/opt/dma_heap.so"),
    *("/opt/venv/bin/python", "-I", "-B", "-c", PROGRAM, "/opt/sources/picamera.py"),
]
BARS = [
    *([255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255]),
    *([255, 0, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]),
]
"""Yellow, cyan, green, magenta, red, blue, black, white: they wander, one place a step."""
pytestmark = pytest.mark.skipif(not ROOT, reason="by hand: see the head of this file")


@pytest.fixture
def start() -> Iterator[Callable[..., Grabber]]:
    started: list[Grabber] = []

    def with_config(**config: Any) -> Grabber:
        settings: dict[str, Any] = {"width_px": 1280, "height_px": 720, "fps": 15.0, **config}
        started.append(picamera_child.grabber(PicameraConfig(type="picamera", **settings), ARGV))
        return started[-1]

    yield with_config
    for grabber in started:
        grabber.stderr()


def bars(picture: np.ndarray[Any, Any]) -> list[int]:
    """Which of BARS follow each other in a row; each that is seen once."""
    row = [
        next((place for place, colour in enumerate(BARS) if np.abs(pixel.astype(int) - colour).max() < 40), -1)
        for pixel in picture[picture.shape[0] // 2]
    ]
    return [place for place, before in zip(row, [-1, *row], strict=False) if place not in (before, -1)]


def steps(found: list[int]) -> set[int]:
    """From bar to bar."""
    return {(after - before) % len(BARS) for before, after in pairwise(found)}


def test_frames_come_in_the_right_colours_and_order(start: Callable[..., Grabber]) -> None:
    grabber = start()
    assert isinstance(grabber.ready, GrabberReady)
    assert grabber.ready.decoder == "picamera2 0.3.38"
    frames = [grabber.frame() for _ in range(20)]
    assert (frames[0].width_px, frames[0].height_px) == (512, 288)
    found = bars(pixels(frames[-1]))
    assert set(found) == set(range(8))
    assert steps(found) == {1}
    times = [frame.captured_at_s for frame in frames]
    assert times == sorted(set(times))
    assert 0 <= time.time() - times[-1] < 5


def test_the_picture_is_turned_by_us_as_this_camera_cannot(start: Callable[..., Grabber]) -> None:
    assert steps(bars(pixels(start(rotation=180).frame()))) == {7}


def test_a_slow_rate_that_the_camera_does_not_have_is_no_problem(start: Callable[..., Grabber]) -> None:
    start(fps=2.0).frame()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fps": 100.0}, "fps is 100; at this size the camera supports at most "),
        ({"autofocus": "continuous"}, "autofocus is continuous, but this camera cannot do that (it has no AfMode)"),
        ({"camera": 1}, "camera is 1, but there is only 0 (Virtual test camera)"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_named(start: Callable[..., Grabber], config: dict[str, Any], words: str) -> None:
    assert words in start(**config).problem()


def test_without_a_camera_it_says_so(start: Callable[..., Grabber]) -> None:
    told = Path(ROOT) / "usr/share/libcamera/pipeline/virtual/virtual.yaml"
    kept = told.read_text()
    told.write_text("{}\n")
    try:
        assert "no camera was found" in start().problem()
    finally:
        told.write_text(kept)


def test_it_leaves_with_the_daemon(start: Callable[..., Grabber]) -> None:
    grabber = start()
    grabber.frame()
    assert grabber.leave() == 0


def test_the_camera_is_listed() -> None:
    done = subprocess.run([*ARGV, "--list"], capture_output=True, check=True, timeout=DEADLINE_S)
    said = json.loads(done.stdout)
    assert [(camera["Num"], camera["Model"], camera["Id"]) for camera in said["cameras"]] == [
        (0, "Virtual test camera", "Virtual0")
    ]
