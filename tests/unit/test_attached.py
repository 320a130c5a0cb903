"""What cameras are attached: asked as a kernel with cameras would be, whose answers are made by its own header."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from edge_daemon import attached
from edge_daemon.attached import ConnectorCamera, PictureFormat, VideoDevice
from edge_daemon.source_config import PicameraConfig, TaggedSource, V4l2Config
from tests.conftest import missing

ROOT = Path(__file__).parents[2]
WEBCAM = ROOT / "tests" / "integration" / "webcam.c"
ASK = """\
import dataclasses, json, pathlib, sys
from edge_daemon import attached
found, problems = attached.video_devices(pathlib.Path(sys.argv[1]))
print(json.dumps([[dataclasses.asdict(camera) for camera in found], problems]))
"""


@pytest.fixture
def devices(tmp_path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What is found in a folder of devices: four of a kernel with cameras, and one that is none."""
    if shutil.which("gcc") is None:
        missing("gcc")
    shim = tmp_path / "webcam.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, WEBCAM, "-ldl"], check=True)
    folder = tmp_path / "dev"
    (folder / "v4l" / "by-id").mkdir(parents=True)
    for name in ("video0", "video1", "video2", "video3", "video9"):
        (folder / name).touch()
    (folder / "v4l" / "by-id" / "usb-C920-index0").symlink_to("../../video0")
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    command = [sys.executable, "-c", ASK, str(folder)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
    found, problems = json.loads(done.stdout)
    return found, problems


def test_video_devices_are_listed_with_formats_and_sizes(devices: tuple[list[dict[str, Any]], list[str]]) -> None:
    (camera, any_size), problems = devices
    assert camera["device"].endswith("/v4l/by-id/usb-C920-index0"), "a name that stays"
    assert (camera["name"], camera["driver"]) == ("HD Pro Webcam C920", "uvcvideo")
    assert camera["formats"] == [
        {"code": "YUYV", "description": "YUYV 4:2:2", "sizes_px": [[320, 240]], "stepwise": False},
        {"code": "MJPG", "description": "Motion-JPEG", "sizes_px": [[800, 600], [1920, 1080]], "stepwise": False},
    ]
    assert any_size["device"].endswith("/video3")
    assert any_size["formats"][0]["sizes_px"] == [[32, 16], [4096, 2160]]
    assert any_size["formats"][0]["stepwise"]
    assert len(problems) == 1
    assert problems[0].endswith("/video9: Inappropriate ioctl for device")


def test_a_device_that_may_not_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "video0").symlink_to("nothing")
    assert attached.video_devices(tmp_path) == ([], [f"{tmp_path}/video0: No such file or directory"])


def test_the_yaml_is_a_source() -> None:
    formats = (PictureFormat("MJPG", "Motion-JPEG", ((160, 120), (800, 600), (1920, 1080)), False),)
    cameras: list[VideoDevice | ConnectorCamera] = [
        ConnectorCamera(1, "imx708_wide", "/base/i2c/imx708"),
        VideoDevice("/dev/video0", "HD Webcam (USB)", "uvcvideo", formats),
        VideoDevice("/dev/video2", "HD Webcam (USB)", "uvcvideo", ()),
    ]
    named = attached.named(cameras)
    assert list(named) == ["imx708-wide", "hd-webcam-usb", "hd-webcam-usb-2"]
    pasted = yaml.safe_load("sources:\n" + "".join(camera.yaml(name) for name, camera in named.items()))
    read = TypeAdapter(dict[str, TaggedSource]).validate_python(pasted["sources"])
    assert read["imx708-wide"] == PicameraConfig(type="picamera", camera=1)
    assert read["hd-webcam-usb"] == V4l2Config(type="v4l2", device=Path("/dev/video0"), width_px=800, height_px=600)


def test_a_camera_that_is_called_like_the_second_of_two_keeps_a_name_of_its_own() -> None:
    cameras = [VideoDevice(f"/dev/video{n}", name, "uvcvideo", ()) for n, name in enumerate(("Cam", "Cam", "Cam 2"))]
    assert attached.named(cameras) == dict(zip(("cam", "cam-2", "cam-2-2"), cameras, strict=True))


def says(answer: object) -> list[str]:
    """A program that answers as picamera.py does."""
    return [sys.executable, "-c", f"print({json.dumps(answer)!r})"]


def test_libcamera_is_asked_by_its_own_python() -> None:
    cameras = [{"Model": "imx219", "Id": "/base/i2c/imx219", "Num": 0}, {"Model": "C920", "Id": "/base/usb1", "Num": 1}]
    found, problem = attached.connector_cameras(says({"problem": "", "cameras": cameras}), 60.0)
    assert (found, problem) == ([ConnectorCamera(0, "imx219", "/base/i2c/imx219")], "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/nowhere/python3"], "libcamera cannot be queried: [Errno 2] No such file"),
        ([sys.executable, "-c", "print(1, 2)"], "libcamera cannot be queried"),
        ([sys.executable, "-c", "raise SystemExit('no memory')"], "failed with exit code 1: no memory"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "did not answer within 0.5 s"),
        (says({"problem": "picamera2 is not installed", "cameras": []}), "picamera2 is not installed"),
    ],
    ids=["no python", "no answer", "an error", "silence", "no picamera2"],
)
def test_libcamera_that_cannot_be_asked_says_why(argv: list[str], words: str) -> None:
    found, problem = attached.connector_cameras(argv, 0.5 if "time" in argv[-1] else 60.0)
    assert found == []
    assert words in problem
