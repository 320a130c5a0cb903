"""The grabber of picamera sources, run as the daemon runs it, on a Python whose picamera2 is a stand-in.

The stand-in keeps the promises of picamera2 0.3.38 (picamera2_stand_in/). That the real one works like this is shown
by tests/picamera_real/, which needs root, packages of another Debian, and a minute.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon import grabber_settings, messages, wire
from edge_daemon.messages import Frame, GrabberReady, Idle, Open, Problem
from edge_daemon.source_config import PicameraConfig
from edge_daemon.sources import picamera
from tests.grabbers import DEADLINE_S, Grabber
from tests.integration import picamera_child
from tests.integration.picamera_child import pixels
from tests.integration.service import wait_for

STAND_IN = Path(__file__).parent / "picamera2_stand_in"
RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
UPRIGHT = [RED, GREEN, BLUE, WHITE]


class Board:
    """A Python environment of the system, with or without picamera2, and its camera."""

    def __init__(self, root: Path, *, bare: bool = False) -> None:
        self.root = root
        self._grabbers: list[Grabber] = []
        venv.create(root, symlinks=True)
        self.python = root / "bin" / "python"
        if not bare:
            packages = next(root.glob("lib/python3*/site-packages"))
            (packages / "stand_in.pth").write_text(f"{STAND_IN}\n{Path(np.__file__).parents[1]}\n")

    def grabber(self, camera: dict[str, Any] | None = None, /, **config: Any) -> Grabber:
        """`camera`: what it is like, and what goes wrong with it."""
        (self.root / "stand_in.json").write_text(json.dumps(camera or {}))
        config = {"fps": 50.0, "open_timeout_s": 30.0, **config}
        self._grabbers.append(picamera_child.grabber(PicameraConfig(type="picamera", python=self.python, **config)))
        return self._grabbers[-1]

    def notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = json.loads((self.root / "notes.json").read_text())
        return notes

    def close(self) -> None:
        for grabber in self._grabbers:
            grabber.stderr()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board")
    yield made
    made.close()


def quarters(frame: Frame) -> list[list[int]]:
    """The colours in the middle of the four quarters."""
    picture = pixels(frame)
    rows, columns = ((side // 4, side * 3 // 4) for side in picture.shape[:2])
    return [picture[row, column].tolist() for row in rows for column in columns]


# ---- pictures --------------------------------------------------------------------------------------------


def test_frames_come_one_after_the_other_each_with_its_own_time(board: Board) -> None:
    grabber = board.grabber()
    assert isinstance(grabber.ready, GrabberReady)
    assert grabber.ready.decoder.startswith("picamera2")
    frames = [grabber.frame() for _ in range(8)]  # more than there are buffers: each was given back
    assert (frames[0].width_px, frames[0].height_px) == (512, 384)
    assert quarters(frames[0]) == UPRIGHT
    times = [frame.captured_at_s for frame in frames]
    assert times == sorted(set(times))
    assert abs(time.time() - times[-1]) < DEADLINE_S
    grey = np.frombuffer(bytes.fromhex(frames[0].thumbnail_hex), np.uint8).reshape(32, 32)
    assert [grey[8, 8], grey[8, 24], grey[24, 8], grey[24, 24]] == [76, 150, 29, 255]


def test_what_waited_longest_is_not_the_one_that_comes(board: Board) -> None:
    grabber = board.grabber()
    first = grabber.frame()
    time.sleep(0.5)  # 25 frames
    assert grabber.frame().captured_at_s > first.captured_at_s + 0.3


@pytest.mark.parametrize("stored", ["BGR888", "RGB888", "XBGR8888", "XRGB8888"])
def test_red_is_red_however_it_lies_in_memory(board: Board, stored: str) -> None:
    assert quarters(board.grabber({"format": stored}).frame()) == UPRIGHT


def test_what_the_image_processor_cannot_shrink_is_shrunk(board: Board) -> None:
    frame = board.grabber({"size": [1280, 720]}, width_px=1280, height_px=720).frame()
    assert (frame.width_px, frame.height_px) == (512, 288)
    assert quarters(frame) == UPRIGHT


@pytest.mark.parametrize("flips", [True, False], ids=["by the camera", "by us"])
@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"rotation": 180}, [WHITE, BLUE, GREEN, RED]),
        ({"hflip": True}, [GREEN, RED, WHITE, BLUE]),
        ({"rotation": 180, "vflip": True}, [GREEN, RED, WHITE, BLUE]),
        ({"vflip": True}, [BLUE, WHITE, RED, GREEN]),
    ],
    ids=str,
)
def test_the_picture_is_turned(board: Board, turn: dict[str, Any], expected: list[list[int]], flips: bool) -> None:
    assert quarters(board.grabber({"flips": flips}, **turn).frame()) == expected


# ---- settings --------------------------------------------------------------------------------------------


def test_what_is_configured_reaches_the_camera(board: Board, tmp_path: Path) -> None:
    tuning = tmp_path / "tuning.json"
    tuning.write_text("{}")
    wanted = {"autofocus": "manual", "lens_position": 2.5, "exposure_us": 9000, "gain": 2.0, "exposure_value": -1.0}
    board.grabber(None, **wanted, fps=20.0, hdr=True, tuning_file=tuning, width_px=3000, height_px=640).frame()
    notes = board.notes()
    assert notes["controls"] == {
        "AfMode": 0,
        "LensPosition": 2.5,
        "ExposureTime": 9000,
        "AnalogueGain": 2.0,
        "ExposureValue": -1.0,
        "FrameDurationLimits": [50000, 50000],
    }
    assert notes["sensor"] == {"output_size": [3000, 1296]}, "at least half the sensor, which sees everything"
    assert notes["sensor_hdr"] == [0, True]
    assert notes["tuning"] == str(tuning)


def test_hdr_of_the_image_processor_and_one_autofocus(board: Board) -> None:
    camera = {
        "cameras": [{"Model": "imx477", "Id": "/base/i2c/imx477"}],
        "controls": {"AfMode": [0, 2, 0], "AfTrigger": [0, 1, 0], "HdrMode": [0, 4, 0]},
    }
    board.grabber(camera, hdr=True, autofocus="auto").frame()
    assert board.notes()["controls"] == {"AfMode": 1, "AfTrigger": 0, "HdrMode": 3}


def test_a_camera_that_cannot_be_as_slow_is_taken_as_it_is(board: Board) -> None:
    board.grabber({"controls": {"FrameDurationLimits": [10000, 20000, 20000]}}, fps=2.0).frame()
    assert board.notes()["controls"] == {"FrameDurationLimits": [20000, 20000]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"autofocus": "manual", "lens_position": 20.0}, ["lens_position is 20.0", "0 to 15"]),
        ({"exposure_us": 5}, ["exposure_us is 5", "100 to 1e+06"]),
        ({"gain": 64.0}, ["gain is 64.0", "1 to 16"]),
        ({"fps": 120.0, "exposure_us": 9000}, ["exposure_us is 9000", "fps 120", "at most 8333"]),
        ({"hdr": True}, ["hdr is True", "no HdrMode", "leave hdr out"]),
        ({"camera": 3}, ["camera is 3", "0 (imx219)"]),
        ({"tuning_file": Path("/nowhere.json")}, ["tuning_file", "/nowhere.json", "No such file"]),
    ],
    ids=str,
)
def test_what_the_camera_cannot_do_is_named(board: Board, config: dict[str, Any], words: list[str]) -> None:
    reason = board.grabber({"cameras": [{"Model": "imx219", "Id": "/base/i2c/imx219"}]}, **config).problem()
    assert all(word in reason for word in words), reason


def test_a_camera_that_is_slower_says_how_fast_it_is(board: Board) -> None:
    camera = {"controls": {"FrameDurationLimits": [33333, 100_000, 33333]}}
    assert "fps is 50; at this size the camera supports at most 30" in board.grabber(camera).problem()


def test_autofocus_without_a_lens_motor_is_named(board: Board) -> None:
    reason = board.grabber({"controls": {}}, autofocus="continuous").problem()
    assert "autofocus is continuous, but this camera cannot do that (it has no AfMode)" in reason


# ---- what goes wrong -------------------------------------------------------------------------------------


def test_no_camera_says_what_to_check(board: Board) -> None:
    assert "no camera was found: check the ribbon cable" in board.grabber({"cameras": []}).problem()


def test_a_usb_camera_is_for_another_type(board: Board) -> None:
    assert "it delivers YUYV, as USB cameras do: use `type: v4l2`" in board.grabber({"format": "YUYV"}).problem()


def test_without_picamera2_it_says_what_to_install(tmp_path: Path) -> None:
    board = Board(tmp_path / "bare", bare=True)
    reason = board.grabber().problem()
    board.close()
    assert f"not installed for {board.python}: sudo apt install python3-picamera2" in reason


def test_a_numpy_that_does_not_fit_is_told_in_words(board: Board) -> None:
    reason = board.grabber({"import_error": "numpy.dtype size changed"}).problem()
    assert "numpy.dtype size changed" in reason
    assert "pip" in reason


def test_a_camera_that_hangs_when_it_is_opened(board: Board) -> None:
    """And the daemon is told now and then that somebody is waiting."""
    grabber = board.grabber({"hangs": True}, open_timeout_s=picamera.HEARTBEAT_S + 1)
    assert "could not be opened within 6 s (open_timeout_s)" in grabber.problem()
    assert grabber.idles
    assert "could not be opened" in grabber.problem(), "and no second try in the same process"
    assert grabber.leave() == 0, "the thread that hangs does not hold it up"


def test_a_camera_that_falls_silent(board: Board) -> None:
    grabber = board.grabber({"frames": 1}, read_timeout_s=1.0)
    grabber.frame()
    assert "no frame came within 1.02 s (read_timeout_s" in grabber.problem()


def test_a_camera_that_is_unplugged(board: Board) -> None:
    grabber = board.grabber({"frames": 1, "then": "error"})
    grabber.frame()
    assert "camera 0 failed: Failed to queue request: No such device" in grabber.problem()


def test_a_camera_that_somebody_else_has_until_he_is_gone(board: Board) -> None:
    first = board.grabber()
    first.frame()
    assert "camera 0 is in use by" in board.grabber().problem()
    first.stderr()
    board.grabber().frame()


def test_who_has_a_device_is_named(tmp_path: Path) -> None:
    device = tmp_path / "media0"
    device.touch()
    assert "sudo fuser" in picamera.owners(prefixes=(str(device),))
    holder = subprocess.Popen(["sleep", "60"], stdin=device.open())
    wait_for("he has it", lambda: "sleep" in picamera.owners(prefixes=(str(device),)))
    assert picamera.owners(prefixes=(str(device),)) == f"sleep (pid {holder.pid})"
    holder.kill()
    holder.wait(DEADLINE_S)


def test_it_leaves_with_the_daemon_and_not_with_ctrl_c(board: Board) -> None:
    grabber = board.grabber()
    grabber.process.send_signal(signal.SIGINT)
    grabber.frame()
    assert Path(f"/proc/{grabber.process.pid}/oom_score_adj").read_text() == f"{picamera.OOM_SCORE}\n"
    assert grabber.leave() == 0


def test_it_leaves_when_the_daemon_is_killed(board: Board) -> None:
    """Although somebody else still holds the pipe."""
    (board.root / "stand_in.json").write_text("{}")
    config = PicameraConfig(type="picamera", python=board.python)
    (told, telling), (heard, hearing) = os.pipe(), os.pipe()
    start = (
        "import subprocess, sys, time; print(subprocess.Popen(sys.argv[2:], stdout=int(sys.argv[1])).pid, flush=True)"
    )
    argv = [sys.executable, "-c", f"{start}; time.sleep(60)", str(hearing), *grabber_settings.argv(config)]
    with subprocess.Popen(argv, stdin=told, stdout=subprocess.PIPE, pass_fds=[hearing]) as daemon:
        pid = int(cast(BinaryIO, daemon.stdout).readline())
        os.write(telling, wire.encode(messages.pack(Open(json.dumps(grabber_settings.settings(config))))))
        with os.fdopen(heard, "rb") as stream:
            ready = wire.read(stream)
        daemon.kill()
    assert ready is not None
    assert ready.type == "GrabberReady"
    gone = Path(f"/proc/{pid}")
    wait_for("it leaves", lambda: not gone.exists() or "Z" in (gone / "stat").read_text())
    for end in (told, telling, hearing):
        os.close(end)


# ---- what it shares with the other grabbers, without importing it ----------------------------------------------


def test_its_bytes_are_those_of_the_wire() -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    sent = picamera.frame(picture, 512, 12.5, (4608, 2592), (1.0, 2.5))
    message = messages.unpack(wire.read(cast(BinaryIO, _Stream(sent))))  # type: ignore[arg-type]
    assert isinstance(message, Frame)
    assert (message.width_px, message.height_px, message.original_width_px) == (6, 4, 4608)
    assert message.capture_ms == 1500.0
    assert message.payload == picture.tobytes()
    assert sent == wire.encode(messages.pack(message))
    reason = "die Kamera trägt nichts bei ☹"
    assert picamera.problem(reason) == wire.encode(messages.pack(Problem(reason, None)))
    assert picamera.encode("Idle", {"problem": "", "late": ""}) == wire.encode(messages.pack(Idle()))
    assert picamera.THUMBNAIL_PX == messages.THUMBNAIL_PX


class _Stream:
    """Bytes, as a pipe gives them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readline(self, limit: int) -> bytes:
        line, _, self._data = self._data.partition(b"\n")
        return line + b"\n"

    def read(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken


def test_what_it_does_not_understand_ends_it(board: Board) -> None:
    grabber = board.grabber()
    grabber.send(Open("{}"))
    assert grabber.receive() is None
    assert grabber.process.wait(DEADLINE_S) == 1
    assert "Next was expected, Open came" in grabber.stderr()


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(min_value=0, max_value=99),
)
def test_every_pixel_of_a_smaller_picture_is_a_mean(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = picamera.averaged(picture, rows, columns)
    for row in range(rows):
        for column in range(columns):
            top, left = row * height // rows, column * width // columns
            bottom, right = (row + 1) * height // rows, (column + 1) * width // columns
            part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
            assert np.allclose(found[row, column], part.mean((0, 1)))


def test_the_timestamp_may_count_the_sleep_or_not() -> None:
    now_s = time.time()
    assert picamera.unix_time(time.monotonic_ns() - 2 * 10**9) == pytest.approx(now_s - 2, abs=1)
    assert picamera.unix_time(time.clock_gettime_ns(time.CLOCK_BOOTTIME)) == pytest.approx(now_s, abs=1)
    assert picamera.unix_time(0) == pytest.approx(now_s, abs=1), "a camera that does not tell"


def test_what_there_is_can_be_listed(board: Board) -> None:
    (board.root / "stand_in.json").write_text("{}")
    script = str(grabber_settings.ON_THE_SYSTEM_PYTHON)
    done = subprocess.run(
        [board.python, "-I", "-B", script, "--list"], capture_output=True, timeout=DEADLINE_S, check=True
    )
    said = json.loads(done.stdout)
    assert said["problem"] == ""
    assert [(camera["Num"], camera["Model"]) for camera in said["cameras"]] == [(0, "imx708")]
