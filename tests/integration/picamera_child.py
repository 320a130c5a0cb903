"""A grabber of a picamera source, and the daemon's side of the conversation with it."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import numpy as np

from edge_daemon import grabber_settings, messages, wire
from edge_daemon.messages import Frame, Idle, Next, Open, Problem
from edge_daemon.source_config import PicameraConfig

DEADLINE_S = 60.0


class Grabber:
    """A running one."""

    def __init__(self, config: PicameraConfig, argv: Sequence[str] = ()) -> None:
        """`argv`: how it is started, if not as the daemon does it."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv or grabber_settings.argv(config), **pipes)  # type: ignore[call-overload]
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.send(Open(json.dumps(grabber_settings.settings(config))))
        self.ready = self.receive()
        self.idles = 0

    def _listen(self) -> None:
        while (message := wire.read(cast(BinaryIO, self.process.stdout))) is not None:
            self._messages.put(messages.unpack(message))
        self._messages.put(None)

    def send(self, item: Any) -> None:
        self.process.stdin.write(wire.encode(messages.pack(item)))
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The next message; None when it has gone."""
        return self._messages.get(timeout=DEADLINE_S)

    def next(self) -> Any:
        self.send(Next())
        while isinstance(answer := self.receive(), Idle):
            self.idles += 1
        return answer

    def frame(self) -> Frame:
        answer = self.next()
        assert isinstance(answer, Frame), answer
        assert len(answer.payload) == answer.width_px * answer.height_px * 3
        return answer

    def problem(self) -> str:
        answer = self.next()
        assert isinstance(answer, Problem), answer
        assert answer.file is None
        return answer.reason

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


def pixels(frame: Frame) -> np.ndarray[Any, Any]:
    """Rows, columns, RGB."""
    return np.frombuffer(frame.payload, np.uint8).reshape(frame.height_px, frame.width_px, 3)
