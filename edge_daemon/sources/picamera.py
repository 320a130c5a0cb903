"""The grabber of cameras at the board's camera connector: `/usr/bin/python3 -I picamera.py`.

picamera2 and libcamera exist for the system's Python only, and with the system's numpy. So this one file runs there,
instead of grabber.py, and imports nothing of edge_daemon nor of its libraries: it speaks the wire format (wire.py,
messages.py) itself, and a test compares the bytes; picamera_rules.py beside it is loaded by its path.
`picamera.py --list` says as JSON what cameras there are.

The camera's image processor shrinks the frames to what the model sees, so there is one stream only: a second one for
the thumbnail (`lores`) would save a millisecond of averaging and cost buffers of the scarce memory of the camera.
There is one Picamera2 object in the life of this process, as each that is made leaks some of that memory: whatever
goes wrong is told as a Problem, and then the daemon ends this process and starts another.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEARTBEAT_S = 5.0
"""Longest time without a message, as in grabber.py."""
TICK_S = 0.5
OOM_SCORE = 500
"""As in grabber.py."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
THUMBNAIL_PX = 32
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as in the thumbnails of the other sources."""
BUFFERS = 3
"""One that is filled, one that is next, and the newest picture, which waits for us."""
STARTUP_FRAMES = 10
"""So many frames may pass before the first one comes: libcamera keeps those back that are still too dark."""
MAX_AGE_S = 60.0
"""A timestamp that is older, or lies in the future, is none of these clocks."""
CHANNELS = {"BGR888": slice(3), "RGB888": slice(None, None, -1), "XBGR8888": slice(3), "XRGB8888": slice(2, None, -1)}
"""Where red, green and blue are. libcamera names them the other way round than they lie in memory: BGR888 is RGB."""
LIBRARY_ERRORS = (RuntimeError, OSError, ValueError, CancelledError)
"""What picamera2 and libcamera raise when a camera does not do as told."""
INSTALL = "sudo apt install python3-picamera2 --no-install-recommends"


class Trouble(Exception):
    """Raised when the camera cannot deliver; the text is for the owner of the camera."""


class Link:
    """The daemon at the other end of stdin and stdout."""

    def __init__(self) -> None:
        """Take descriptors 0 and 1, leave /dev/null and stderr in their place, and listen."""
        self._input = os.fdopen(os.dup(0), "rb")
        self._output = os.fdopen(os.dup(1), "wb")
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        self._received: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._sent_s = 0.0
        threading.Thread(target=self._listen, name="daemon", daemon=True).start()

    def expect(self, kind: str) -> dict[str, Any]:
        """The fields of the next message, which is of this kind."""
        came, fields = self._received.get()
        if came != kind:
            raise ValueError(f"{kind} was expected, {came} came")
        self._sent_s = time.monotonic()
        return fields

    def send(self, message: bytes) -> None:
        """Send one message at once; leave if nobody reads any more."""
        try:
            self._output.write(message)
            self._output.flush()
        except BrokenPipeError:
            os._exit(0)
        self._sent_s = time.monotonic()

    def idle(self) -> None:
        """Say now and then that there is nothing to deliver yet."""
        if time.monotonic() - self._sent_s >= HEARTBEAT_S:
            self.send(encode("Idle", {"problem": "", "late": ""}))

    def _listen(self) -> None:
        while line := self._input.readline():
            header = json.loads(line)
            self._input.read(header["payload_bytes"])
            self._received.put((header["type"], header["fields"]))
        # The main thread may be deep in libcamera, which would like to be closed and may hang; the kernel frees it all.
        os._exit(0)


def encode(kind: str, fields: dict[str, Any], payload: bytes = b"") -> bytes:
    """One message, as wire.encode has it."""
    header = {"type": kind, "fields": fields, "payload_bytes": len(payload)}
    return json.dumps(header).encode("ascii") + b"\n" + payload


def problem(reason: str) -> bytes:
    """The message that says why there is no frame."""
    return encode("Problem", {"reason": reason, "file": None})


class Grabber:
    """One camera, which is opened when the first frame is wanted."""

    def __init__(self, told: dict[str, Any]) -> None:
        """Load the libraries. `told`: what Open says."""
        self._rules: Any = beside("picamera_rules")
        self._settings = self._rules.Settings(**{key: value for key, value in told.items() if key != "type"})
        if self._settings.tuning_file is not None:  # libcamera reads it as soon as it looks for cameras
            os.environ["LIBCAMERA_RPI_TUNING_FILE"] = self._settings.tuning_file
        self._camera: Any = None
        self._flips = (1, 1)
        """Steps through rows and columns: -1 where the camera cannot turn the picture round itself."""
        self.library, self._trouble = load_library()

    def next(self, link: Link) -> bytes:
        """The next frame, or why there is none: now, and for good."""
        settings = self._settings
        frame_s = 1 / settings.fps
        limit_s = settings.read_timeout_s + frame_s
        try:
            if self._trouble:
                raise Trouble(self._trouble)
            if self._camera is None:
                opening = ThreadPoolExecutor(1, "open").submit(self._open)
                late = f"it could not be opened within {settings.open_timeout_s:g} s (open_timeout_s)"
                self._camera = patiently(opening.result, link, settings.open_timeout_s, late)
                limit_s = max(limit_s, settings.open_timeout_s, STARTUP_FRAMES * frame_s)
            return self._frame(link, limit_s)
        except Trouble as error:
            self._trouble = str(error)
        except LIBRARY_ERRORS as error:
            self._trouble = in_words(settings.camera, error)
        return problem(self._trouble)

    def _open(self) -> Any:
        """The camera, running. Raises Trouble, or whatever libcamera has to say."""
        from libcamera import Transform
        from picamera2 import Picamera2

        rules, settings = self._rules, self._settings
        cameras = Picamera2.global_camera_info()
        refuse(rules.tuning_problem(settings.tuning_file) or rules.number_problem(cameras, settings.camera))
        hdr_is_set = set_sensor_hdr(settings.hdr, cameras[settings.camera])
        camera = Picamera2(settings.camera, tuning=settings.tuning_file)
        hflip, vflip = settings.flips
        camera.configure(
            camera.create_still_configuration(
                main={"size": settings.stream_size, "format": "BGR888"},
                raw=None,
                transform=Transform(hflip=hflip, vflip=vflip),
                buffer_count=BUFFERS,
                queue=True,
                sensor={"output_size": settings.sensor_size(camera.sensor_resolution)},
            )
        )
        got = camera.camera_configuration()
        if got["main"]["format"] not in CHANNELS:
            raise Trouble(f"it delivers {got['main']['format']}, as USB cameras do: use `type: v4l2` for it")
        done = got["transform"]
        self._flips = (1 if bool(done.vflip) == vflip else -1), (1 if bool(done.hflip) == hflip else -1)
        limits = camera.camera_controls  # now, as they depend on the size
        refuse(rules.control_problem(settings, limits, hdr_is_set))
        camera.set_controls(rules.controls(settings, limits, hdr_is_set))
        camera.start()
        return camera

    def _frame(self, link: Link, limit_s: float) -> bytes:
        """The newest frame that was not delivered yet; waits for it."""
        camera, started_s = self._camera, time.monotonic()
        # Not `wait=limit_s`: there would be no heartbeat.
        job = camera.capture_request(wait=False)
        late = f"no frame came within {limit_s:g} s (read_timeout_s, and the time between two frames)"
        request = patiently(lambda timeout_s: camera.wait(job, timeout=timeout_s), link, limit_s, late)
        try:
            said = request.get_metadata()
            raw = request.make_array("main")  # a copy
        finally:
            request.release()  # at once: a camera that gets no buffer back stops
        taken_s = time.monotonic()
        captured_at_s = unix_time(said.get("SensorTimestamp", 0))
        got = camera.camera_configuration()
        pixels = raw[:: self._flips[0], :: self._flips[1], CHANNELS[got["main"]["format"]]]
        original = (got.get("sensor") or {}).get("output_size") or got["main"]["size"]
        return frame(pixels, self._settings.max_side_px, captured_at_s, original, (started_s, taken_s))


def beside(name: str) -> ModuleType:
    """A module of this folder, without the package around it, which stays out of this Python."""
    spec = util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refuse(problem: str) -> None:
    """Raise Trouble if there is any."""
    if problem:
        raise Trouble(problem)


def load_library() -> tuple[str, str]:
    """What reads the pictures, with its version, and why it cannot."""
    os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:WARN")
    os.environ.setdefault("LIBCAMERA_LOG_NO_COLOR", "1")
    try:
        import libcamera  # noqa: F401
        import picamera2  # noqa: F401

        return f"picamera2 {metadata.version('picamera2')}", ""
    except metadata.PackageNotFoundError:
        return "picamera2", ""
    except ModuleNotFoundError as error:
        return "picamera2", f"{error.name} is not installed for {sys.executable}: {INSTALL}"
    except (ImportError, AttributeError, *LIBRARY_ERRORS) as error:
        return "picamera2", (
            f"picamera2 cannot be loaded by {sys.executable} ({type(error).__name__}: {error}); usually a numpy from "
            f"pip in /usr/local/lib hides the system's, for which picamera2 was built: remove it, then {INSTALL}"
        )


def patiently(result: Callable[[float], Any], link: Link, limit_s: float, late: str) -> Any:
    """What `result` comes to, which is given so many seconds at a time. Raises Trouble when it takes too long."""
    end_s = time.monotonic() + limit_s
    while (left_s := end_s - time.monotonic()) > 0:
        link.idle()
        turn_s, began_s = min(TICK_S, left_s), time.monotonic()
        try:
            return result(turn_s)
        except TimeoutError:
            if time.monotonic() - began_s < turn_s / 2:  # not ours, but a driver's
                raise
    raise Trouble(late)


def set_sensor_hdr(hdr: bool | None, info: dict[str, Any]) -> bool:
    """Switch the HDR of a sensor that has it, which is possible only before it is opened; whether it has."""
    if hdr is None or not str(info.get("Model", "")).startswith("imx708"):
        return False
    from picamera2.devices.imx708 import IMX708

    with IMX708(info["Num"]) as sensor:
        sensor.set_sensor_hdr_mode(hdr)
    return True


def unix_time(sensor_ns: int) -> float:
    """When a frame was exposed. The timestamp counts from boot, with or without the time the board was asleep."""
    for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME):
        age_s = (time.clock_gettime_ns(clock) - sensor_ns) / 1e9
        if 0 <= age_s <= MAX_AGE_S:
            return time.time() - age_s
    return time.time()


def frame(
    pixels: NDArray[Any],
    max_side_px: int,
    captured_at_s: float,
    original: tuple[int, int],
    times_s: tuple[float, float],
) -> bytes:
    """The message with a picture (rows, columns, RGB).

    `original`: width and height of what the sensor delivers; `times_s`: when it was asked for, and when it came.
    """
    import numpy

    height_px, width_px = pixels.shape[:2]
    if max(height_px, width_px) > max_side_px:  # the image processor could not shrink it as far
        scale = max_side_px / max(height_px, width_px)
        height_px, width_px = max(1, round(height_px * scale)), max(1, round(width_px * scale))
        pixels = averaged(pixels, height_px, width_px).round().astype(numpy.uint8)
    thumbnail = averaged(pixels, THUMBNAIL_PX, THUMBNAIL_PX) @ numpy.array(LUMA)
    fields = {
        "captured_at_s": captured_at_s,
        "width_px": width_px,
        "height_px": height_px,
        "original_width_px": original[0],
        "original_height_px": original[1],
        "thumbnail_hex": thumbnail.round().astype(numpy.uint8).tobytes().hex(),
        "capture_ms": (times_s[1] - times_s[0]) * 1e3,
        "decode_ms": (time.monotonic() - times_s[1]) * 1e3,
        "file": None,
    }
    return encode("Frame", fields, pixels.tobytes())


def averaged(pixels: NDArray[Any], height_px: int, width_px: int) -> NDArray[Any]:
    """A picture (rows, columns, RGB) in another size: each pixel is the mean of those that lie in it."""
    import numpy

    starts = [numpy.arange(to) * of // to for to, of in zip((height_px, width_px), pixels.shape, strict=False)]
    heights, widths = (
        numpy.maximum(numpy.diff(at, append=of), 1) for at, of in zip(starts, pixels.shape, strict=False)
    )
    # rows first: that reads the picture as it lies in memory
    sums = numpy.add.reduceat(pixels, starts[0], axis=0, dtype=numpy.uint32)
    means: NDArray[Any] = numpy.add.reduceat(sums, starts[1], axis=1) / (heights[:, None] * widths)[:, :, None]
    return means


def in_words(number: int, error: BaseException) -> str:
    """What a library's error means for the owner of the camera."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause) or type(cause).__name__)
        cause = cause.__cause__
    text = ": ".join(said)
    if "busy" in text.lower() or "in use" in text.lower():
        return f"camera {number} is in use by {owners()} ({said[-1]}): only one program at a time can use it"
    if "allocate" in text.lower():
        return f"there is not enough camera memory (CMA) for camera {number}: {said[-1]}"
    return f"camera {number} failed: {text}"


def owners(prefixes: tuple[str, ...] = ("/dev/media", "/dev/video")) -> str:
    """Who has camera devices open, other than us."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            files = [os.readlink(link) for link in (process / "fd").iterdir()]
            if any(file.startswith(prefixes) for file in files):
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:  # it has gone, or is another user's
            continue
    if not found:
        return "another program, which belongs to another user: `sudo fuser -v /dev/media* /dev/video*` names it"
    return ", ".join(f"{command} (pid {pid})" for pid, command in sorted(found.items()))


def list_cameras(output: int) -> None:
    """Write what cameras there are, or why nobody knows, as JSON."""
    _, trouble = load_library()
    cameras: list[dict[str, Any]] = []
    if not trouble:
        from picamera2 import Picamera2

        cameras = Picamera2.global_camera_info()
    os.write(output, json.dumps({"problem": trouble, "cameras": cameras}).encode())


def main() -> None:
    """Deliver frames until the daemon goes; with `--list` only say what there is."""
    if sys.argv[1:] == ["--list"]:
        output = os.dup(1)
        os.dup2(2, 1)
        list_cameras(output)
        return
    link = Link()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n", encoding="ascii")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the daemon decides what ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grabber = Grabber(json.loads(link.expect("Open")["settings_json"]))
    link.send(encode("GrabberReady", {"decoder": grabber.library}))
    while True:
        link.expect("Next")
        link.send(grabber.next(link))


if __name__ == "__main__":
    main()
