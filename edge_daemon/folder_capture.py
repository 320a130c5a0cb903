"""The daemon's side of a folder: every file is captioned once; one that cannot be is reported and left alone.

The grabber may die of a picture; the picture that it was opening is then reported, and a new grabber goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from edge_daemon import snapshot
from edge_daemon.broken_files import BrokenFiles
from edge_daemon.capture import HANGS, SILENCE_S, Capture, check, stranger
from edge_daemon.child import Child
from edge_daemon.errors import ChildError, PictureError
from edge_daemon.messages import FileKey, Frame, Idle, Next, Offer, Opening, Problem, Wanted
from edge_daemon.outbox import Outbox
from edge_daemon.restart_policy import LONGEST_DELAY_S, RestartPolicy
from edge_daemon.source_config import FolderConfig

log = logging.getLogger(__name__)


class FolderCapture(Capture[FolderConfig]):
    """One folder."""

    def __init__(
        self,
        name: str,
        config: FolderConfig,
        outbox: Outbox,
        deliver: Callable[[Frame], Awaitable[None]],
        beat: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(name, config, beat, on_change)
        self._outbox = outbox
        self._deliver = deliver
        self._opening: FileKey | None = None
        self._suspect: FileKey | None = None
        """The file that the last grabber died of; dying of it again proves its guilt."""
        self._broken = BrokenFiles()
        self._late = ""
        """The last reason that was told why pictures come late; while they do the source is online."""
        self._in_flight: WeakValueDictionary[FileKey, Frame] = WeakValueDictionary()
        """Pictures that wait for a caption or get one: as long as they are somewhere, whatever becomes of them."""

    async def current(self) -> Frame:
        """The newest file, whether it was captioned or not. Raises PictureError."""
        if self.hangs:
            raise PictureError(HANGS)
        return await snapshot.of_folder(self.config, self.left)

    async def talk(self, child: Child) -> None:
        """Take picture after picture."""
        await child.send(Next(), SILENCE_S)
        while True:
            message = await child.receive(self._patience_s)
            self.beat()
            await self._handle(child, message)

    @property
    def _patience_s(self) -> float:
        """How long the grabber may be silent: it ends by itself when a picture takes too much processor time."""
        return SILENCE_S + (self.config.decode_timeout_s if self._opening else 0.0)

    async def _handle(self, child: Child, message: object) -> None:
        match message:
            case Offer(files, gone):
                self._outbox.forget(self.name, gone)
                # a new grabber offers again what an earlier one has delivered, and what has no mark yet
                wanted = self._outbox.wanted(self.name, files)
                flags = [new and file not in self._in_flight for new, file in zip(wanted, files, strict=True)]
                await child.send(Wanted(flags, self._outbox.doubtful(self.name, sum(flags))), SILENCE_S)
            case Opening(file):
                self._opening = file
            case Idle():
                self._opening = None
                self._say(self._broken.due(time.monotonic()))
                self._rest(message)
            case Frame():
                check(message)
                self._opening = None
                self._say(self._broken.over(time.monotonic()))
                self.set_phase("online")
                if message.file is not None:
                    self._in_flight[message.file] = message
                await self._deliver(message)
                await child.send(Next(), SILENCE_S)
            case Problem(reason, file):
                self._opening = None
                self.report(reason, file)
                await child.send(Next(), SILENCE_S)
            case _:
                raise stranger(child, message)

    def after_death(self, policy: RestartPolicy, error: ChildError) -> float:
        """Blame the picture that was being opened, when it is the second grabber's death.

        One death proves nothing: a kill from outside or a fault of our own must not cost a good picture.
        """
        again = policy.last_reason == str(error)
        # a source may come back at any time (a stick is plugged in, a camera wakes): never hopeless
        delay_s = policy.died(str(error), time.monotonic()) or LONGEST_DELAY_S
        opening, self._opening = self._opening, None
        if opening is not None and opening == self._suspect:
            self.report(f"reading it ended the grabber twice: {error}", opening)
        elif again and delay_s >= LONGEST_DELAY_S:  # told often enough: it stands in health
            self.state.problems += 1
        else:
            self.report(f"{error}; next start in {delay_s:.0f} s", None)
        self._suspect = opening
        return delay_s

    def failed(self, frame: Frame, reason: str) -> None:
        """Its file is dealt with all the same."""
        self.report(reason, frame.file)

    def report(self, reason: str, file: FileKey | None) -> None:
        """Say once what is wrong with a file, which is then dealt with, or with the folder."""
        if file is None:
            self.tell(str(self.config.path), reason)
            self.set_phase("offline")
        else:
            words = self.note(f"{self.config.path}/{file.name}", reason)
            self._say(self._broken.another(words, time.monotonic()))
            self._outbox.put(self.name, [], file)

    def _say(self, words: str) -> None:
        """Of broken files, if there is something to be said now."""
        if words:
            log.warning("source %s: %s", self.name, words)

    def _rest(self, idle: Idle) -> None:
        """The grabber has nothing to deliver: because all is done, or because something keeps it from it."""
        if idle.problem and idle.problem != self.state.last_problem.get("reason"):
            self.report(idle.problem, None)
        if idle.late and idle.late != self._late:
            self._late = idle.late
            self.tell(str(self.config.path), idle.late)
        self.set_phase("offline" if idle.problem else "online")
