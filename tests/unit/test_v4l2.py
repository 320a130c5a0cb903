"""USB cameras, as far as they go without one: what the kernel's refusals mean, and a film read in a device's place."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest

from edge_daemon.messages import Frame, Problem
from edge_daemon.sources.v4l2 import Device, V4l2Options, owner_of
from edge_daemon.sources.video import VideoSource
from tests.cameras import film, scenes
from tests.grabbers import ALIKE, CameraGrabber, difference

OPTIONS = V4l2Options("", 640, 480, None, "auto", open_timeout_s=15.0, read_timeout_s=10.0, max_side_px=512)


def reason(device: str) -> str:
    with CameraGrabber(type="v4l2", device=device, width_px=640, height_px=480, fps=5.0, format="mjpeg") as grabber:
        return grabber.problem()


def test_no_device_and_what_is_none(tmp_path: Path) -> None:
    assert reason("/dev/video77").startswith("there is no /dev/video77: is the camera plugged in?")
    assert reason("/dev/null") == "/dev/null is not a video device"
    file = tmp_path / "file"
    file.touch()
    assert reason(str(file)) == f"{file} is not a video device"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (16, "is in use by python"),
        (13, "must be in its group (root)" if os.geteuid() == 0 else "must be in its group"),
        (19, "has gone: was it unplugged?"),
        (22, "cannot do 1920×1080, 5 pictures a second, format h264: check width_px, height_px, fps and format"),
        (5, "FFmpeg says: "),
    ],
)
def test_what_the_kernel_says_is_said_in_words(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "device"
    path.touch()
    device = Device(replace(OPTIONS, device=str(path), width_px=1920, height_px=1080, fps=5.0, format="h264"))
    hold = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(av.FFmpegError) as caught:
            av.error.err_check(-number, str(path))
        assert words in device.why(caught.value)
        assert str(owner.pid) in owner_of(str(path))
        owner.communicate()
    assert str(owner.pid) not in owner_of(str(path))


class Asking:
    """The daemon, that waits."""

    fresh = True

    def offer(self, *_: object) -> list[bool]:
        raise AssertionError("a camera offers no files")

    opening = idle = alive = lambda *_: None


def test_frames_are_read_as_from_a_device(tmp_path: Path) -> None:
    """The same class as for a device, but for what of FFmpeg reads it; a film of JPEGs, as USB cameras send them."""
    path = film(tmp_path / "film.avi", scenes(1) * 3, codec="mjpeg", options={"strict": "-1"})
    source = VideoSource(Device(replace(OPTIONS, device=str(path)), demuxer=None), "auto", 512)
    frame = source.next(Asking())
    assert isinstance(frame, Frame)
    assert difference(frame, scenes(1)[0]) < ALIKE
    while isinstance(answer := source.next(Asking()), Frame):
        pass
    assert answer == Problem(f"the camera {path} has gone: was it unplugged?", None)
