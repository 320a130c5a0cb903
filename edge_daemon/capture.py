"""The daemon's side of one source: run its grabber, ask for pictures, put them into the slot.

The grabber may die of a picture; the picture that it was opening is then reported and left alone, and a
new grabber goes on with the next. Knows nothing of the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edge_daemon.child import Child
from edge_daemon.config import MIB, FolderConfig
from edge_daemon.errors import ChildDied, ChildError
from edge_daemon.messages import THUMBNAIL_PX, FileKey, Frame, GrabberReady, Idle, Next, Offer, Opening, Problem, Wanted
from edge_daemon.outbox import Outbox
from edge_daemon.supervisor import LONGEST_DELAY_S, RestartPolicy

MAX_SIDE_PX = 512
"""Longer side of a frame; in the template scheme that costs one vision pass instead of up to five."""
SILENCE_S = 60.0
"""A grabber that says nothing for so long is stuck; at rest it says Idle every few seconds."""
LONGEST_MS = 1e9
"""A picture that took longer than eleven days did not."""
STOP_GRACE_S = 2.0
log = logging.getLogger(__name__)


@dataclass
class SourceState:
    """What health says about a source."""

    state: str = "starting"
    enabled: bool = True
    paused_until: str = ""
    """When its pause is over, or `resumed`; empty: it is not paused."""
    captioned: int = 0
    problems: int = 0
    last_problem: dict[str, str] = field(default_factory=dict)
    last_result_at: str = ""


class Capture:
    """One source."""

    def __init__(
        self,
        name: str,
        config: FolderConfig,
        outbox: Outbox,
        deliver: Callable[[Frame], Awaitable[None]],
        beat: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.config = config
        self.state = SourceState()
        self._outbox = outbox
        self._deliver = deliver
        self._beat = beat
        self._on_change = on_change
        self._opening: FileKey | None = None
        self._suspect: FileKey | None = None
        """The file that the last grabber died of; dying of it again proves its guilt."""

    async def run(self) -> None:
        """Capture for ever; a dead grabber is started again after a while."""
        policy = RestartPolicy()
        while True:
            try:
                await self._one_grabber(policy)
            except ChildError as error:
                delay_s = self._after_death(policy, error)
            end_s = time.monotonic() + delay_s
            while (left_s := end_s - time.monotonic()) > 0:
                self._beat()
                await asyncio.sleep(min(left_s, 1.0))

    def _after_death(self, policy: RestartPolicy, error: ChildError) -> float:
        """Blame the picture that was being opened, when it is the second grabber's death; the seconds to wait.

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

    async def _one_grabber(self, policy: RestartPolicy) -> None:
        """The life of one grabber."""
        argv = [sys.executable, "-m", "edge_daemon.grabber", "--source-json", json.dumps(grabber_options(self.config))]
        child = await Child.start(f"grabber {self.name}", argv)
        try:
            while True:
                message = await child.receive(self._patience_s)
                self._beat()
                if isinstance(message, GrabberReady):
                    policy.ready(time.monotonic())
                    log.info("source %s: watching with %s", self.name, message.decoder)
                    await child.send(Next(), SILENCE_S)
                else:
                    await self._handle(child, message)
        finally:
            await child.stop(STOP_GRACE_S)

    @property
    def _patience_s(self) -> float:
        """How long the grabber may be silent: it ends by itself when a picture takes too much processor time."""
        return SILENCE_S + (self.config.decode_timeout_s if self._opening else 0.0)

    async def _handle(self, child: Child, message: object) -> None:
        match message:
            case Offer(files):
                await child.send(Wanted(self._outbox.wanted(self.name, files)), SILENCE_S)
            case Opening(file):
                self._opening = file
            case Idle(problem):
                self._opening = None
                self._rest(problem)
            case Frame():
                check(message)
                self._opening = None
                self._set_state("online")
                await self._deliver(message)
                await child.send(Next(), SILENCE_S)
            case Problem(reason, file):
                self._opening = None
                self.report(reason, file)
                await child.send(Next(), SILENCE_S)
            case _:
                raise ChildDied(f"the grabber {self.name} sent {type(message).__name__}, and was ended")

    def report(self, reason: str, file: FileKey | None) -> None:
        """Say once what is wrong with a file, which is then dealt with, or with the source."""
        where = f"{self.config.path}/{file.name}" if file else str(self.config.path)
        shown = where.encode("utf-8", "backslashreplace").decode()
        log.warning("source %s: %r: %s", self.name, shown, reason)
        self.state.problems += 1
        self.state.last_problem = {"where": shown, "reason": reason}
        if file is None:
            self._set_state("offline")
            return
        self._outbox.put(self.name, [], file)
        self._on_change()

    def _rest(self, problem: str) -> None:
        """The grabber has nothing to deliver: because all is done, or because something keeps it from it."""
        known = self.state.state == "offline" and self.state.last_problem.get("reason") == problem
        if problem and not known:
            self.report(problem, None)
        elif not problem:
            self._set_state("online")

    def _set_state(self, state: str) -> None:
        if self.state.state != state:
            self.state.state = state
            self._on_change()


def check(frame: Frame) -> None:
    """Raise ChildDied for a frame that is none: whoever made it cannot be trusted."""
    size = (frame.width_px, frame.height_px)
    if not all(0 < side <= MAX_SIDE_PX for side in size) or len(frame.payload) != 3 * frame.width_px * frame.height_px:
        raise ChildDied(f"the grabber sent {len(frame.payload)} bytes as a picture of {size}, and was ended")
    if not re.fullmatch(f"[0-9a-f]{{{2 * THUMBNAIL_PX**2}}}", frame.thumbnail_hex):
        raise ChildDied("the grabber sent a thumbnail that is none, and was ended")
    if not all(0 <= ms <= LONGEST_MS for ms in (frame.capture_ms, frame.decode_ms)):
        raise ChildDied("the grabber sent a time that nothing takes, and was ended")


def grabber_options(config: FolderConfig) -> dict[str, object]:
    """What a grabber is told of its source."""
    return {
        "type": config.type,
        "path": str(config.path),
        "pattern": config.pattern,
        "recursive": config.recursive,
        "poll": config.poll,
        "settle_s": config.settle_s,
        "rescan_s": config.rescan_s,
        "max_side_px": MAX_SIDE_PX,
        "max_pixels": config.max_pixels,
        "max_file_bytes": config.max_file_mib * MIB,
        "decode_memory_bytes": config.decode_memory_mib * MIB,
        "decode_timeout_s": config.decode_timeout_s,
    }
