"""Stand-in for picamera2 0.3.38 where there is no camera: what its source and its documentation promise, as unkindly.

* a request that is not released gives no buffer back, and without buffers no frame comes;
* a job that nobody waits for any more still takes the next frame;
* the camera belongs to one process (a lock that the kernel takes back), and to one Picamera2 object in its life;
* sizes are even, names of streams and controls are known, formats are named the other way round than they lie there;
* what it prints on stdout, as libraries do, must not do harm.

What this camera is like, and what goes wrong with it, stands in stand_in.json of the Python environment (sys.prefix);
what was done with it is written to notes.json there.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from libcamera import Transform

HERE = Path(sys.prefix)
CAMERA: dict[str, Any] = {
    "cameras": [{"Model": "imx708", "Location": 2, "Rotation": 180, "Id": "/base/soc/i2c0mux/i2c@1/imx708@1a"}],
    "controls": {
        "AfMode": [0, 2, 0],
        "AfTrigger": [0, 1, 0],
        "LensPosition": [0.0, 15.0, 1.0],
        "ExposureTime": [100, 1_000_000, 20000],
        "AnalogueGain": [1.0, 16.0, 1.0],
        "ExposureValue": [-8.0, 8.0, 0.0],
        "FrameDurationLimits": [8333, 2_000_000, 33333],
    },
    "resolution": [4608, 2592],
    "format": None,
    "size": None,
    "flips": True,
    "hangs": False,
    "frames": 1_000_000,
    "then": "silence",
    "import_error": None,
    **json.loads((HERE / "stand_in.json").read_text()),
}
if CAMERA["import_error"]:
    raise ValueError(CAMERA["import_error"])
print("a library that talks on stdout", flush=True)
FORMATS = {"BGR888": "RGB", "RGB888": "BGR", "XBGR8888": "RGBX", "XRGB8888": "BGRX", "YUYV": "RG"}
"""What lies in memory."""
SCENE = {"R": [255, 0, 0, 255], "G": [0, 255, 0, 255], "B": [0, 0, 255, 255], "X": [9, 9, 9, 9]}
"""Red, green, blue and white: top left, top right, bottom left, bottom right."""


def note(what: str, value: Any) -> None:
    """For the test."""
    file = HERE / "notes.json"
    notes = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**notes, what: value}))


class Job:
    def __init__(self, function: Callable[[], tuple[bool, Any]]) -> None:
        self._function = function
        self._future: Future[Any] = Future()

    def execute(self) -> bool:
        done, result = self._function()
        if done:
            self._future.set_result(result)
        return done

    def fail(self, error: Exception) -> None:
        self._future.set_exception(error)

    def get_result(self, timeout: float | None = None) -> Any:
        return self._future.result(timeout)


class CompletedRequest:
    def __init__(self, camera: Picamera2, number: int) -> None:
        self._camera = camera
        self._metadata = {"SensorTimestamp": time.monotonic_ns(), "ExposureTime": 20000, "number": number}

    def get_metadata(self) -> dict[str, Any]:
        assert self._camera is not None, "it was released"
        return self._metadata

    def make_array(self, name: str) -> np.ndarray[Any, Any]:
        assert self._camera is not None, "it was released"
        return self._camera.picture(self._camera.camera_config[name])

    def release(self) -> None:
        camera, self._camera = self._camera, None  # type: ignore[assignment]
        assert camera is not None, "it was released twice"
        camera.free += 1


class Picamera2:
    made = 0

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        note("tuning", os.environ.get("LIBCAMERA_RPI_TUNING_FILE"))
        return [{**info, "Num": number} for number, info in enumerate(CAMERA["cameras"])]

    def __init__(self, camera_num: int = 0, tuning: str | None = None) -> None:
        Picamera2.made += 1
        assert Picamera2.made == 1, "a second Picamera2 in one process"
        assert tuning == os.environ.get("LIBCAMERA_RPI_TUNING_FILE"), "it was enumerated with another tuning"
        if CAMERA["hangs"]:
            threading.Event().wait()
        try:
            self._lock = (HERE / f"camera{camera_num}").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cause = RuntimeError(f"Failed to acquire camera: {os.strerror(16)}")
            cause.__cause__ = error
            raise RuntimeError("Camera __init__ sequence did not complete.") from cause
        self.sensor_resolution = tuple(CAMERA["resolution"])
        self.camera_controls = {name: tuple(limits) for name, limits in CAMERA["controls"].items()}
        self.camera_config: dict[str, Any] = {}
        self._controls: dict[str, Any] = {}
        self._lists = threading.Lock()
        self._jobs: list[Job] = []
        self._completed: list[CompletedRequest] = []
        self.free = 0

    def create_still_configuration(self, main: dict[str, Any], **others: Any) -> dict[str, Any]:
        assert set(main) <= {"format", "size", "stride", "preserve_ar"}
        known = {"lores", "raw", "transform", "colour_space", "buffer_count", "controls", "queue", "sensor"}
        assert set(others) <= known, set(others) - known
        return {"main": dict(main), "buffer_count": 1, "queue": True, "transform": Transform(), "sensor": {}, **others}

    def configure(self, config: dict[str, Any]) -> None:
        size, stream = config["main"]["size"], config["main"]
        if type(size) is not tuple or size[0] % 2 or size[1] % 2:
            raise RuntimeError("width and height should be even")
        assert config["queue"]
        assert config["buffer_count"] > 1
        stream["size"] = tuple(CAMERA["size"] or size)
        stream["format"] = CAMERA["format"] or stream["format"]
        self.free = config["buffer_count"]
        done = config["transform"] if CAMERA["flips"] else Transform()
        self.camera_config = {**config, "transform": done}
        note("sensor", config["sensor"])

    def camera_configuration(self) -> dict[str, Any]:
        return self.camera_config

    def set_controls(self, controls: dict[str, Any]) -> None:
        for name in controls:
            if name not in self.camera_controls:
                raise RuntimeError(f"Control {name} is not advertised by libcamera")
        self._controls |= controls
        note("controls", self._controls)

    def start(self) -> None:
        assert self.camera_config, "Camera has not been configured"
        threading.Thread(target=self._run, daemon=True).start()

    def capture_request(self, wait: Any = None) -> Any:
        def take() -> tuple[bool, Any]:
            return (True, self._completed.pop(0)) if self._completed else (False, None)

        job = Job(take)
        with self._lists:
            self._jobs.append(job)
        self._serve()
        timeout_s = None if wait in (None, True) else wait
        return job.get_result(timeout_s) if wait is not False else job

    def wait(self, job: Job, timeout: float | None = None) -> Any:
        return job.get_result(timeout)

    def picture(self, config: dict[str, Any]) -> np.ndarray[Any, Any]:
        """The scene, as the camera is turned."""
        width, height = config["size"]
        places = np.array([SCENE[letter] for letter in FORMATS[config["format"]]], np.uint8)
        turned: Transform = self.camera_config["transform"]
        quarters = places.T.reshape(2, 2, -1)[:: -1 if turned.vflip else 1, :: -1 if turned.hflip else 1]
        return quarters.repeat(height // 2, 0).repeat(width // 2, 1)

    def _run(self) -> None:
        frame_s = self._controls.get("FrameDurationLimits", (33333, 33333))[0] / 1e6
        for number in range(CAMERA["frames"]):
            time.sleep(frame_s)
            with self._lists:
                if self.free:
                    self.free -= 1
                    self._completed.append(CompletedRequest(self, number))
            self._serve()
            with self._lists:
                while len(self._completed) > 1:
                    self._completed.pop(0).release()
        while CAMERA["then"] == "error":
            time.sleep(0.05)
            with self._lists:
                while self._jobs:
                    self._jobs.pop(0).fail(RuntimeError("Failed to queue request: No such device"))

    def _serve(self) -> None:
        with self._lists:
            while self._jobs and self._jobs[0].execute():
                self._jobs.pop(0)
