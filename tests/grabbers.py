"""Grabber children, driven over their pipes as the daemon does it."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, ImageChops, ImageStat
from pydantic import TypeAdapter

from edge_daemon import grabber_settings, messages, wire
from edge_daemon.messages import THUMBNAIL_PX, Frame, GrabberReady, Idle, Next, Open, Problem
from edge_daemon.source_config import TaggedSource

DEADLINE_S = 60.0
"""For every wait; nothing takes a tenth of it."""

COMMAND = (sys.executable, "-m", "edge_daemon.grabber")
ALIKE = 6.0
"""What encoding and shrinking change in a scene, in grey levels; another scene differs by far more."""

NEEDED: dict[object, dict[str, object]] = {
    "folder": {"path": "/srv"},
    "stream": {"url": "/srv/film"},
    "v4l2": {},
    "command": {"command": ["true"]},
}
"""Keys that have no default."""


def settings_of(**keys: object) -> dict[str, Any]:
    """What the daemon tells the grabber of such a source, but for these."""
    config = TypeAdapter(TaggedSource).validate_python({"type": keys["type"], **NEEDED[keys["type"]]})
    return grabber_settings.settings(config) | keys


class Grabber:
    """A grabber child, and the daemon's side of the conversation with it."""

    def __init__(self, settings: dict[str, Any], command: Sequence[str | Path] = COMMAND) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[1], start_new_session=True
        )
        self.idles = 0
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stderr = ""
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        threading.Thread(target=self._listen, daemon=True).start()
        self.send(Open(json.dumps(settings)))
        self.ready = self.receive()

    def _listen(self) -> None:
        while (message := wire.read(cast(BinaryIO, self.process.stdout))) is not None:
            self.arrived.put(messages.unpack(message))
        self.arrived.put(None)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr += line.decode()

    @property
    def decoder(self) -> str:
        assert isinstance(self.ready, GrabberReady), self.stderr()
        return self.ready.decoder

    def send(self, item: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(wire.encode(messages.pack(item)))
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The next message; None when it has gone."""
        return self.arrived.get(timeout=DEADLINE_S)

    def next(self, *, fresh: bool = False) -> Frame | Problem:
        """Ask for one picture, and wait for it."""
        self.send(Next(fresh))
        while isinstance(answer := self.receive(), Idle):
            self.idles += 1
        assert isinstance(answer, Frame | Problem), f"{answer!r}; stderr: {self.stderr()}"
        return answer

    def frame(self, *, fresh: bool = False) -> Frame:
        answer = self.next(fresh=fresh)
        assert isinstance(answer, Frame), answer
        assert len(answer.payload) == answer.width_px * answer.height_px * 3
        return answer

    def problem(self) -> str:
        """Why it delivers nothing."""
        answer = self.next()
        assert isinstance(answer, Problem), answer
        assert answer.file is None
        return answer.reason

    def status(self, key: str) -> int:
        """A line of its /proc status, such as VmRSS, in KiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.findall(rf"{key}:\s+(\d+) kB", text)[0])

    def leave(self) -> int:
        """Close the pipe; the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE_S)

    def stderr(self) -> str:
        """What it wrote, after it has been made to end."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._hearing.join(DEADLINE_S)
        return self._stderr


class CameraGrabber(Grabber):
    """One of a camera; a context manager that ends it."""

    def __init__(self, **settings: object) -> None:
        super().__init__(settings_of(**settings))
        assert self.decoder

    def __enter__(self) -> CameraGrabber:
        return self

    def __exit__(self, *_: object) -> None:
        self.stderr()

    def problem(self) -> str:
        """What it says when it delivers no more; what it still had is passed over."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if isinstance(answer := self.next(), Problem):
                assert answer.file is None
                return answer.reason
        raise AssertionError(f"still frames after {DEADLINE_S} s")

    def frame_like(self, picture: Image.Image, alike: float = ALIKE) -> Frame:
        """The first frame that shows this picture: a few of what was shown before may come first."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            frame = self.frame(fresh=True)
            if difference(frame, picture) < alike:
                return frame
        raise AssertionError(f"no such picture within {DEADLINE_S} s")


def difference(frame: Frame, picture: Image.Image) -> float:
    """How far a frame is from the picture that was shown: the mean difference of their channels."""
    shown = Image.frombytes("RGB", (frame.width_px, frame.height_px), frame.payload)
    wanted = picture.resize(shown.size, Image.Resampling.BOX)
    return sum(ImageStat.Stat(ImageChops.difference(shown, wanted)).mean) / 3


def thumbnail_difference(frame: Frame, picture: Image.Image) -> float:
    """The same for the thumbnail."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    shown = Image.frombytes("L", size, bytes.fromhex(frame.thumbnail_hex))
    wanted = picture.convert("L").resize(size, Image.Resampling.BOX)
    return float(ImageStat.Stat(ImageChops.difference(shown, wanted)).mean[0])
