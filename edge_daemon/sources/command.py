"""A program that writes JPEGs to its standard output, one after the other, as a camera.

The program runs in the grabber's process group, which the daemon ends as a whole, and dies with the grabber at the
latest. It is started before the grabber limits itself: what is right for a decoder of strange pictures would break it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edge_daemon import picture, shown_address
from edge_daemon.errors import PictureError
from edge_daemon.messages import Frame, Problem
from edge_daemon.picture import Decoder, Limits
from edge_daemon.sources import Daemon
from edge_daemon.sources.frames import frame_of
from edge_daemon.sources.jpeg_stream import JpegSplitter

_TICK_S = 0.2
_CHUNK_BYTES = 1 << 16
_LAST_WORDS = 300
_EXIT_S = 1.0
"""A program that closes its output ends within so long, or says nothing of how it ended."""


@dataclass(frozen=True)
class CommandOptions:
    """How long it may take."""

    open_timeout_s: float
    read_timeout_s: float


class Program:
    """The program, running."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it; when that cannot be, `problem` says why."""
        self.name = command[0]
        self.problem = ""
        self.process: subprocess.Popen[bytes] | None = None
        if shutil.which(command[0]) is None:
            self.problem = f"there is no program {command[0]!r} that can be run: check the first word of command"
            return
        launcher = (sys.executable, "-P", "-m", "edge_daemon.sources.launcher", str(os.getpid()))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen((*launcher, *command), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)

    def end_in_words(self, last_words: str, *, wrote: bool) -> str:
        """How it ended, after its output did; `wrote`: whether there was a picture in it."""
        assert self.process is not None
        try:
            status = self.process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return f"{self.name} closed its output"
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}" if -status in set(signal.Signals) else "was killed"
        else:
            how = f"ended with exit status {status}"
        how += "" if wrote else " and wrote no JPEG"
        return f"{self.name} {how}" + (f"; its last words: {last_words}" if last_words else "")


class CommandSource:
    """A program's pictures; the newest counts."""

    def __init__(self, options: CommandOptions, limits: Limits, decoder: Decoder, program: Program) -> None:
        """Begin to read what the program writes."""
        self.decoder = decoder.name
        self._options = options
        self._limits = limits
        self._decoder = decoder
        self._program = program
        self._news = threading.Event()
        self._newest: tuple[int, bytes, float] | None = None
        self._returned = 0
        self._failing_since_s: float | None = None
        self._ended = program.problem
        self._last_words = ""
        self._started_s = time.monotonic()
        self._heard_s = 0.0
        self._talk = threading.Thread(target=self._pass_on, name="its stderr", daemon=True)
        if program.process is not None:
            self._talk.start()
            threading.Thread(target=self._read, name="its pictures", daemon=True).start()

    def next(self, daemon: Daemon) -> Frame | Problem:
        """Wait for a picture that is newer than the last one, or for the reason why none will come."""
        asked_s = time.monotonic()
        while True:
            ended = self._ended  # looked at first: what was read before the end is still to be shown
            began_s = time.monotonic()
            newest = self._newest
            if newest is not None and newest[0] > self._returned:
                self._returned = newest[0]
                try:
                    loaded = picture.decode(newest[1], self._decoder, self._limits)
                except PictureError as error:
                    problem = self._damaged(str(error), time.monotonic())
                else:
                    self._failing_since_s = None
                    decode_ms = (time.monotonic() - began_s) * 1e3
                    return frame_of(None, newest[2], loaded, decode_ms, capture_ms=(began_s - asked_s) * 1e3)
            else:
                problem = ended or self._late(time.monotonic())
            if problem:
                return Problem(problem, None)
            daemon.idle("")
            self._news.wait(_TICK_S)
            self._news.clear()

    def _damaged(self, reason: str, now_s: float) -> str:
        """The reason why there is no hope: one picture may be broken."""
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        hopeless = now_s - self._failing_since_s > self._options.read_timeout_s
        return f"what {self._program.name} writes is damaged: {reason}" if hopeless else ""

    def _late(self, now_s: float) -> str:
        """The words for a deadline that passed, or nothing."""
        options, name = self._options, self._program.name
        if self._newest is None and now_s - self._started_s > options.open_timeout_s:
            return f"{name} wrote no JPEG within {options.open_timeout_s:g} s (open_timeout_s)"
        if self._newest is not None and now_s - self._heard_s > options.read_timeout_s:
            return f"{name} wrote no picture for {options.read_timeout_s:g} s (read_timeout_s)"
        return ""

    # ---- the other threads ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Keep the newest picture, until the end."""
        ended = ""
        process = self._program.process
        assert process is not None
        assert process.stdout is not None
        splitter = JpegSplitter(self._limits.max_file_bytes)
        try:
            while data := os.read(process.stdout.fileno(), _CHUNK_BYTES):
                for jpeg in splitter.feed(data):
                    number = self._newest[0] + 1 if self._newest else 1
                    self._newest, self._heard_s = (number, jpeg, time.time()), time.monotonic()
                    self._news.set()
            self._talk.join(_EXIT_S)
            ended = self._program.end_in_words(self._last_words, wrote=self._newest is not None)
        except PictureError as error:
            ended = f"what {self._program.name} writes is not a JPEG: {error}"
        except MemoryError:
            ended = f"what {self._program.name} writes does not fit into this process's memory"
        finally:
            self._ended = ended or "reading its output ended unexpectedly; the log has the reason"
            self._news.set()

    def _pass_on(self) -> None:
        """What the program says on stderr goes to ours, line by line, without logins: it may repeat its arguments."""
        process = self._program.process
        assert process is not None
        assert process.stderr is not None
        while line := process.stderr.readline(_CHUNK_BYTES):
            text = shown_address.in_text(line.decode(errors="replace").rstrip())
            if text:
                self._last_words = text[-_LAST_WORDS:]
                sys.stderr.write(text + "\n")
                sys.stderr.flush()
