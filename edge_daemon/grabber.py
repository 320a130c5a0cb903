"""The child that reads pictures: `python -m edge_daemon.grabber`.

It is told by Open what to open, and answers each Next with one Frame or Problem; see messages.py.
Pictures come from anywhere, so whatever a broken one does, it does it here: within limits of memory and time, in a
process that the daemon can lose. It keeps nothing on disk, knows no broker and no model, and leaves at once when the
daemon goes.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from edge_daemon.errors import WireError
from edge_daemon.messages import FileKey, GrabberReady, Idle, Next, Offer, Open, Opening, Wanted
from edge_daemon.picture import Decoder, Limits, Picture
from edge_daemon.picture_limits import DECODE_MEMORY_MIB, DECODE_TIMEOUT_S
from edge_daemon.pipe import Pipe, die_with_parent, volunteer_for_oom
from edge_daemon.rlimits import confine
from edge_daemon.sources import Source
from edge_daemon.units import MIB

if TYPE_CHECKING:
    from edge_daemon.sources.command import Program

HEARTBEAT_S = 5.0
"""Longest time without a message while there is nothing to deliver."""
MAX_OPEN_FILES = 256
"""Ten inotify watches and the pipe; a leak ends in an error of its own."""
OOM_SCORE = 500
"""Between the daemon (0) and the worker: whoever is killed here costs one picture."""

KINDS = ("folder", "single", "stream", "v4l2", "command")

M_ARENA_MAX = -8
"""From malloc.h of glibc."""

T = TypeVar("T")


class DaemonLink:
    """The daemon, as a source sees it (sources.Daemon), at the other end of the pipe."""

    def __init__(self, pipe: Pipe) -> None:
        """Start to listen: when the daemon goes, so does this process, whatever it is doing."""
        self._pipe = pipe
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sent_s = time.monotonic()
        self._resting: Idle | None = None  # what was told last since Next
        self._doubtful: list[str] = []
        """Files that the daemon asks for."""
        self.fresh = False
        threading.Thread(target=self._listen, name="daemon", daemon=True).start()

    def wait_for_settings(self) -> dict[str, Any]:
        """What to open. Raises WireError when something else comes."""
        settings: dict[str, Any] = json.loads(self._expect(Open).settings_json)
        return settings

    def wait_for_next(self) -> None:
        """Wait until a picture is asked for. Raises WireError when something else comes."""
        self.fresh = self._expect(Next).fresh
        self._sent_s = time.monotonic()
        self._resting = None

    def send(self, item: Any) -> None:
        """Send one message at once; leave if nobody reads any more."""
        try:
            self._pipe.write(item)
        except BrokenPipeError:
            os._exit(0)
        self._sent_s = time.monotonic()

    def offer(self, files: list[FileKey], has_gone: Callable[[str], bool]) -> list[bool]:
        """Which of these files are wanted. Raises WireError when the answer is not one to this question."""
        self.send(Offer(files, [name for name in self._doubtful if has_gone(name)]))
        answer = self._expect(Wanted)
        if len(answer.flags) != len(files):
            raise WireError(f"{len(files)} files were offered, Wanted speaks of {len(answer.flags)}")
        self._doubtful = answer.doubtful
        return answer.flags

    def opening(self, file: FileKey) -> None:
        """Say which file is read next."""
        self.send(Opening(file))

    def idle(self, problem: str, late: str = "") -> None:
        """Say that there is nothing to deliver: at once after Next or when the problem changes, then now and then."""
        resting = Idle(problem, late)
        if self._resting != resting:
            self._resting = resting
            self.send(resting)
        self.alive()

    def alive(self) -> None:
        """Say something after HEARTBEAT_S of silence."""
        if time.monotonic() - self._sent_s >= HEARTBEAT_S:
            self.send(self._resting or Idle())

    def _expect(self, kind: type[T]) -> T:
        message = self._received.get()
        if not isinstance(message, kind):
            raise WireError(f"{kind.__name__} was expected, {type(message).__name__} came")
        return message

    def _listen(self) -> None:
        status = 0
        try:
            while (message := self._pipe.read()) is not None:
                self._received.put(message)
        except WireError as error:
            print(f"what the daemon sent is not a message: {error}", file=sys.stderr, flush=True)
            status = 1
        # The main thread may be deep in a decoder; nothing here needs tidying up.
        os._exit(status)


class Hurried:
    """A decoder that has so much processor time for each picture; then the kernel ends this process (SIGPROF).

    Nothing else stops a decoder: it may hold Python's lock, so no thread of ours is sure to run. Time on the
    clock would blame a picture for a board that is busy; the daemon has an eye on that.
    """

    def __init__(self, decoder: Decoder, timeout_s: float) -> None:
        self.name = decoder.name
        self._decoder = decoder
        self._timeout_s = timeout_s

    def decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        """Decode the first frame, in time. Raises what the decoder raises."""
        signal.setitimer(signal.ITIMER_PROF, self._timeout_s)
        try:
            return self._decoder.decode(data, kind, limits)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Open the source and deliver pictures until the daemon goes."""
    pipe = Pipe()
    die_with_parent()
    volunteer_for_oom(OOM_SCORE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the daemon decides what ends
    daemon = DaemonLink(pipe)
    settings = daemon.wait_for_settings()
    program = start_program(settings)  # before the limits, which are for us and would break it
    limit_itself(settings.pop("decode_memory_bytes", DECODE_MEMORY_MIB * MIB))
    source = open_source(settings, program)
    daemon.send(GrabberReady(source.decoder))
    while True:
        daemon.wait_for_next()
        daemon.send(source.next(daemon))


def limit_itself(memory_bytes: int) -> None:
    """Let allocations fail beyond this, write no file, open few, and give back what is free."""
    confine(memory_bytes, MAX_OPEN_FILES)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # One malloc arena for all threads: with libvips' threads each in its own, 50 MB more stay resident (measured).
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such call
        mallopt(M_ARENA_MAX, 1)


def start_program(settings: dict[str, Any]) -> Program | None:
    """The program that a command source is, running; other sources have none."""
    if settings["type"] != "command":
        return None
    from edge_daemon.sources.command import Program

    return Program(settings.pop("command"))


def open_source(settings: dict[str, Any], program: Program | None = None) -> Source:
    """The source that the settings name. Raises ValueError for settings that nobody knows."""
    kind = settings.pop("type")
    if kind not in KINDS:
        raise ValueError(f"there is no source of type {kind!r}; there are: {', '.join(KINDS)}")
    if kind in ("stream", "v4l2"):
        try:
            source = _stream(settings) if kind == "stream" else _v4l2(settings)
        except ModuleNotFoundError as error:
            sys.exit(f"a camera of this type needs PyAV: pip install 'edge-daemon[cameras]' ({error})")
    else:
        source = _files(kind, settings, program)
    if settings:
        raise ValueError(f"unknown settings: {', '.join(sorted(settings))}")
    return source


def _stream(settings: dict[str, Any]) -> Source:
    from edge_daemon.sources.stream import Stream, StreamOptions
    from edge_daemon.sources.video import VideoSource

    options = _take(StreamOptions, settings)
    return VideoSource(Stream(options), options.decode, options.max_side_px)


def _v4l2(settings: dict[str, Any]) -> Source:
    from edge_daemon.sources.v4l2 import Device, V4l2Options
    from edge_daemon.sources.video import VideoSource

    options = _take(V4l2Options, settings)
    return VideoSource(Device(options), "auto", options.max_side_px)


def _files(kind: str, settings: dict[str, Any], program: Program | None) -> Source:
    """Where pictures come as the bytes of picture files."""
    from edge_daemon.decoders import open_decoder

    timeout_s = settings.pop("decode_timeout_s", DECODE_TIMEOUT_S)
    decoder = Hurried(open_decoder(settings.pop("decoder", "auto")), timeout_s)
    limits = _take(Limits, settings)
    if program is not None:
        return _command(settings, limits, decoder, program)
    return _folder(settings, limits, decoder) if kind == "folder" else _single(settings, limits, decoder)


def _command(settings: dict[str, Any], limits: Limits, decoder: Decoder, program: Program) -> Source:
    from edge_daemon.sources.command import CommandOptions, CommandSource

    return CommandSource(_take(CommandOptions, settings), limits, decoder, program)


def _folder(settings: dict[str, Any], limits: Limits, decoder: Decoder) -> Source:
    from edge_daemon.sources.folder import FolderOptions, FolderSource

    return FolderSource(_take(FolderOptions, settings), limits, decoder)


def _single(settings: dict[str, Any], limits: Limits, decoder: Decoder) -> Source:
    from edge_daemon.sources.single import SingleOptions, SingleSource

    return SingleSource(_take(SingleOptions, settings), limits, decoder)


def _take(cls: type[T], settings: dict[str, Any]) -> T:
    """A dataclass from those of the settings that are its own; they are removed."""
    return cls(**{field.name: settings.pop(field.name) for field in fields(cls) if field.name in settings})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
