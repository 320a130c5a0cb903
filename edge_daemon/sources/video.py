"""Whatever FFmpeg reads as a camera: it is read all the time, and the newest frame is there for who asks.

Three threads: one reads packets, and may hang in a library for ever; one decodes what nobody asked for yet but must be
decoded (sources/newest.py says what); and the one that is asked decodes what is wanted now and watches the clock.
Once reading ends this source is done: opening again is a new process's business. Knows nothing of RTSP or V4L2.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from edge_daemon.choices import Decode
from edge_daemon.messages import Frame, Problem
from edge_daemon.sources import Daemon
from edge_daemon.sources.developing import Developed, Developer
from edge_daemon.sources.frames import frame_of
from edge_daemon.sources.newest import Arrived, Group
from edge_daemon.sources.scaling import Scaler

DECODER = f"FFmpeg {av.ffmpeg_version_info}, PyAV {av.__version__}"
NO_KEY_FRAME_S = 60.0
"""Until a key frame comes there is no picture; cameras that save bits may send one every twenty seconds."""
UNDECODED = "it is damaged, or needs more memory than this process may use"
"""FFmpeg does not always tell which."""
ATTEMPTS = 2
"""One broken key frame is bad luck, however rarely they come."""
_TICK_S = 0.2
_EARLY_S = 0.1
_AT_ONCE = 100
"""Packets that are decoded between two chances for the thread that is asked."""
_IN_SLICES = ("h264", "hevc")


class Camera(Protocol):
    """One kind of camera: how it is opened, and what its errors mean."""

    @property
    def open_timeout_s(self) -> float:
        """How long opening may take."""

    @property
    def read_timeout_s(self) -> float:
        """How long nothing may come."""

    def open(self) -> InputContainer:
        """Open it. Raises av.FFmpegError, or OSError."""

    def keep_pace(self, due_s: float) -> None:
        """Wait until a packet may be read: one that belongs so many seconds after the first. Cameras have a pace."""

    def why(self, error: Exception | None) -> str:
        """Why it cannot be opened or read, in plain words and without its login; None: it came to its end."""

    def silent(self, what: str, after_s: float) -> str:
        """The words for a deadline that passed; `what` is `open` or `read`."""


class VideoSource:
    """A camera as a source of pictures."""

    decoder = DECODER

    def __init__(self, camera: Camera, decode: Decode, max_side_px: int) -> None:
        """Nothing is touched until a picture is asked for."""
        self._camera = camera
        self._scaler = Scaler(max_side_px)
        self._group = Group(decode)
        self._lock = threading.Lock()  # of the group
        self._developing = threading.Lock()  # of the developer; taken before the other one
        self._news, self._fed = threading.Event(), threading.Event()
        self._stream: VideoStream | None = None
        self._developer: Developer | None = None
        self._last: Arrived | None = None
        self._returned = 0
        self._started_s = 0.0
        self._opened_s = 0.0
        self._heard_s = 0.0
        self._ended = ""

    def next(self, daemon: Daemon) -> Frame | Problem:
        """Wait for a frame that is newer than the last one, or for the reason why none will come."""
        if not self._started_s:
            self._start()
        asked_s = time.monotonic()
        while True:
            ended = self._ended  # looked at first: what was read before the end is still to be shown
            began_s = time.monotonic()
            try:
                developed = self._develop(daemon)
                if developed is not None:
                    return self._frame(developed, began_s, began_s - asked_s)
            except MemoryError as error:
                return Problem(self._camera.why(error), None)
            if ended and self._developer and self._developer.failures and not self._returned:
                ended += f"; no picture could be decoded: {UNDECODED}"
            problem = ended or self._trouble(time.monotonic())
            if problem:
                return Problem(problem, None)
            daemon.idle("")
            self._news.wait(_TICK_S)
            self._news.clear()

    def _develop(self, daemon: Daemon) -> Developed | None:
        """The newest frame that is wanted, if it is another one than the last time."""
        if self._developer is None:
            return None
        with self._developing:
            with self._lock:
                wanted = self._group.wanted(daemon.fresh, time.time())
            developed = self._developer.develop(wanted, now=True, breathe=daemon.alive)
        return developed if developed and developed.number > self._returned else None

    def _frame(self, developed: Developed, began_s: float, waited_s: float) -> Frame:
        self._returned = developed.number
        assert self._stream is not None
        shape = self._stream.codec_context.sample_aspect_ratio or self._stream.sample_aspect_ratio
        picture = self._scaler.picture(developed.frame, shape)
        taken_ms = (time.monotonic() - began_s) * 1e3
        return frame_of(None, developed.at_s, picture, taken_ms, capture_ms=waited_s * 1e3)

    def _late(self, now_s: float) -> str:
        """The words for a deadline that passed, or nothing."""
        camera = self._camera
        what, since_s, timeout_s = "open", self._started_s, camera.open_timeout_s
        if self._opened_s:
            what, since_s, timeout_s = "read", max(self._opened_s, self._heard_s), camera.read_timeout_s
        return camera.silent(what, timeout_s) if now_s - since_s > timeout_s else ""

    def _trouble(self, now_s: float) -> str:
        """Why there is no hope, or nothing."""
        late = self._late(now_s)
        if late or not self._opened_s:
            return late
        developer = self._developer
        failing_since_s = developer.failing_since_s if developer else None
        if developer and failing_since_s is not None and developer.failures >= ATTEMPTS:
            failing_s = now_s - failing_since_s
            if failing_s > self._camera.read_timeout_s:
                return f"no whole picture for {failing_s:.0f} s: {UNDECODED}"
        if self._group.key is None and now_s - self._opened_s > NO_KEY_FRAME_S:
            return (
                f"no key frame came for {NO_KEY_FRAME_S:.0f} s: set a shorter key frame interval (I-frame interval, "
                "GOP) in the camera, such as two seconds"
            )
        return ""

    # ---- the other threads ---------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started_s = time.monotonic()
        for what in (self._read, self._keep_up):
            threading.Thread(target=what, name=what.__name__.strip("_"), daemon=True).start()

    def _read(self) -> None:
        """Read until the end. What was opened stays open: closing may hang, and this process ends soon."""
        ended = "reading it ended unexpectedly; the log has the reason"
        try:
            container = self._camera.open()
            stream = next(iter(container.streams.video), None)
            if stream is None:
                ended = "there is no video in it"
            elif stream.codec_context is None:
                ended = "this FFmpeg does not know its video codec; it knows H.264, H.265 and MJPEG"
            else:
                self._read_stream(container, stream)
                ended = self._camera.why(None)
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            # FFmpeg has many names for a deadline that passed; one of them is that the data are invalid
            ended = self._late(time.monotonic() + _EARLY_S) or self._camera.why(error)
        finally:
            self._ended = ended
            self._news.set()

    def _read_stream(self, container: InputContainer, stream: VideoStream) -> None:
        """Read packets until the end. Raises what PyAV raises."""
        self._stream, self._developer = stream, Developer(stream.codec_context)
        self._opened_s = time.monotonic()
        first_s: float | None = None
        for packet in container.demux(stream):
            if packet.size == 0:  # the end
                continue
            stamp = packet.pts if packet.dts is None else packet.dts
            if stamp is not None:
                first_s = first_s if first_s is not None else float(stamp * packet.time_base)
                self._camera.keep_pace(float(stamp * packet.time_base) - first_s)
            self._add(packet, stream.codec_context.name)

    def _add(self, packet: Any, codec: str) -> None:
        last = self._last
        if last and self._late(time.monotonic() + _EARLY_S):
            return  # FFmpeg has given up, and gives what its parser kept: it came with the last one, not now
        if last and last.is_key and codec in _IN_SLICES and packet.pts is not None and packet.pts == last.packet.pts:
            packet = joined(last.packet, packet)
        arrived = Arrived(packet, last.number + 1 if last else 1, time.time(), packet.is_keyframe, packet.size)
        with self._lock:
            self._group.add(arrived)
        self._last = arrived
        self._heard_s = time.monotonic()
        self._news.set()
        self._fed.set()

    def _keep_up(self) -> None:
        """Decode what must be, as it comes."""
        try:
            while not self._ended:
                self._fed.wait(_TICK_S)
                self._fed.clear()
                while self._decode_some():
                    self._news.set()
        except MemoryError as error:
            self._ended = self._camera.why(error)

    def _decode_some(self) -> bool:
        """Whether there was something to decode."""
        with self._developing:
            with self._lock:
                due = self._group.due()[:_AT_ONCE]
            if not due or self._developer is None:
                return False
            self._developer.develop(due, now=False, breathe=lambda: None)
            with self._lock:
                self._group.let_go(due)
            return True


def joined(first: Any, second: Any) -> Any:
    """Two packets of the same time as one.

    Servers built on GStreamer repeat the parameter sets before every slice of a key frame. FFmpeg takes that for the
    begin of another frame, and decodes the slices as two, each of them a picture that is half grey.
    """
    packet = av.Packet(bytes(first) + bytes(second))
    packet.pts, packet.dts, packet.time_base = first.pts, first.dts, first.time_base
    packet.is_keyframe = True
    return packet
