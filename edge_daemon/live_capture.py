"""The daemon's side of a camera: look at a frame every so often, let the gate decide, keep the newest that passed.

A camera that is lost is opened again after a while, by a new grabber each time. Nothing of it delays other sources.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import zlib
from collections.abc import Callable
from typing import Literal

from edge_daemon.capture import Capture, next_picture, stranger
from edge_daemon.child import Child
from edge_daemon.clock import on_the_wall
from edge_daemon.errors import ChildError, PictureError, SourceLost
from edge_daemon.gate import Gate, Passed, Skipped
from edge_daemon.hygiene import Hygiene
from edge_daemon.messages import Frame
from edge_daemon.progress import patiently
from edge_daemon.restart_policy import RestartPolicy
from edge_daemon.source_config import LiveConfig

LOOK_S = 30.0
"""A camera is asked for a frame so often at least, so that its loss is noticed however rarely it is captioned."""
LONGEST_DELAY_S = 60.0
JITTER = 0.25
"""Eight cameras that a switch has lost do not come back in the same second."""
TOLD_DEATHS = 3
"""A camera whose program delivers and ends, all day and for the same reason, would fill the journal with it."""
ANSWER_S = 60.0
"""Whoever asks for a picture waits so long at most, for a camera that is just being opened."""


class LiveCapture(Capture[LiveConfig]):
    """One camera."""

    def __init__(
        self,
        name: str,
        config: LiveConfig,
        renew: Callable[[Frame, Passed], bool],
        beat: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """`renew` takes a frame and why it is worth a caption; True: it took the place of one that waited."""
        super().__init__(name, config, beat, on_change)
        self.gate = Gate(config.gate, config.interval_s)
        self._hygiene = Hygiene()
        self._renew = renew
        self._asked: list[asyncio.Future[Frame]] = []
        self._woken = asyncio.Event()

    async def current(self) -> Frame:
        """A frame of now. Raises PictureError."""
        if self.state.phase == "offline":
            raise PictureError(f"the camera does not deliver: {self.state.last_problem.get('reason', '')}")
        picture: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._asked.append(picture)
        self._woken.set()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await picture
        except TimeoutError:
            raise PictureError(f"the camera has delivered nothing for {ANSWER_S:.0f} s") from None
        finally:
            if picture in self._asked:
                self._asked.remove(picture)

    def changed(self) -> None:
        """Switched on or off, or with other rules."""
        self.gate.change_rules(self.config.gate, self.config.interval_s)
        self._woken.set()

    async def wanted(self) -> None:
        """Wait until it is switched on; its camera is closed until then."""
        while not self.config.enabled:
            self.set_phase("off")
            self._woken.clear()
            await patiently(self._woken.wait(), self.beat)

    async def talk(self, child: Child) -> None:
        """Look at frame after frame, until it is switched off."""
        while self.config.enabled:
            asked, self._asked = self._asked, []
            try:
                frame = await self._frame(child, fresh=bool(asked))
            except ChildError as error:
                _refuse(asked, error)
                raise
            self.set_phase("online")
            for picture in asked:
                if not picture.done():
                    picture.set_result(frame)
            self._look(frame)
            await self._until_due()

    async def _frame(self, child: Child, *, fresh: bool) -> Frame:
        answer = await next_picture(child, lambda _: self.beat(), fresh=fresh)
        self.beat()
        if isinstance(answer, Frame):
            return answer
        raise SourceLost(answer.reason) if answer.file is None else stranger(child, answer)

    async def _until_due(self) -> None:
        """Wait for the time of the next look, or until somebody asks."""
        self._woken.clear()
        if self._asked:
            return
        try:
            async with asyncio.timeout(min(self.config.interval_s, LOOK_S)):
                await patiently(self._woken.wait(), self.beat)
        except TimeoutError:
            pass

    def _look(self, frame: Frame) -> None:
        """Decide whether this frame is worth a caption."""
        thumbnail, age_s = bytes.fromhex(frame.thumbnail_hex), time.time() - frame.captured_at_s
        problem = self._hygiene.look(thumbnail, zlib.crc32(frame.payload), age_s, time.monotonic())
        self._notice(problem)
        if problem:
            self._skip("problem")
            return
        verdict = self.gate.judge(thumbnail, time.monotonic(), on_the_wall())
        if not verdict.passes:
            self._skip(verdict.why)
        elif self._renew(frame, verdict.why):
            self._skip("replaced")

    def _notice(self, problem: str) -> None:
        """A problem of the picture is told once; the camera goes on to be watched."""
        if problem and problem != self.state.picture_problem:
            self.tell(self.config.place, problem)
        self.state.picture_problem = problem

    def _skip(self, why: Skipped | Literal["problem", "replaced", "too_old"]) -> None:
        self.state.skipped[why] = self.state.skipped.get(why, 0) + 1

    def after_death(self, policy: RestartPolicy, error: ChildError) -> float:
        """Told once for each reason, or a few times if it delivered in between; never hopeless."""
        gist = _gist(str(error))
        same, was_away = policy.last_reason == gist, self.state.phase == "offline"
        self.comes_and_goes = same and not was_away and policy.deaths >= TOLD_DEATHS
        longest_s = policy.died(gist, time.monotonic(), passes=True) or LONGEST_DELAY_S
        delay_s = min(longest_s, LONGEST_DELAY_S) * random.uniform(1 - JITTER, 1 + JITTER)
        if self.comes_and_goes or (same and was_away):
            self.state.problems += 1
        else:
            self.tell(self.config.place, f"{error}; it is retried for ever, at longer and longer intervals")
        self.set_phase("offline")
        asked, self._asked = self._asked, []
        _refuse(asked, error)
        return delay_s

    def failed(self, frame: Frame, reason: str) -> None:
        """The next frame is another one."""
        self.tell(self.config.place, reason)

    def is_stale(self, frame: Frame, taken_s: float) -> bool:
        """Whether it has waited for longer than max_age_s, or until one before it had been captioned, of the same."""
        now_s = time.monotonic()
        too_old = now_s - taken_s > self.config.max_age_s
        why = "too_old" if too_old else self.gate.overtaken(bytes.fromhex(frame.thumbnail_hex), taken_s, now_s)
        if why is not None:
            self._skip(why)
        return why is not None

    def captioned(self, frame: Frame, doubted: bool) -> None:
        """The next ones are compared with this one."""
        self.gate.published(bytes.fromhex(frame.thumbnail_hex), time.monotonic(), doubted)


def _gist(reason: str) -> str:
    """A reason without what is another one each time: the times, numbers and addresses in a program's last words."""
    how, its, words = reason.partition("its last words: ")
    return how + its + re.sub(r"\w*\d\w*", "#", words)


def _refuse(asked: list[asyncio.Future[Frame]], error: ChildError) -> None:
    for picture in asked:
        if not picture.done():
            picture.set_exception(PictureError(f"the camera does not deliver: {error}"))
