"""The daemon's side of one source: its grabber's lives, and what is wrong with it. What all kinds have in common.

A dead grabber is started again after a while, for ever: a stick is plugged in again, a camera wakes.
Knows nothing of the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

from edge_daemon import grabber_settings
from edge_daemon.child import Child
from edge_daemon.errors import ChildDied, ChildError
from edge_daemon.messages import THUMBNAIL_PX, Frame, GrabberReady, Idle, Next, Open, Problem
from edge_daemon.picture_limits import MAX_SIDE_PX
from edge_daemon.progress import patiently
from edge_daemon.restart_policy import RestartPolicy
from edge_daemon.source_config import SourceConfig

SILENCE_S = 60.0
"""A grabber that says nothing for so long is stuck; at rest it says Idle every few seconds."""
LONGEST_MS = 1e9
"""A picture that took longer than eleven days did not."""
STOP_GRACE_S = 2.0
HANGS = (
    "the process reading it is stuck in the kernel and cannot be killed (typical of a dead network mount or device); "
    "the source is retried once that process is gone"
)
log = logging.getLogger(__name__)


SourcePhase = Literal["starting", "online", "offline", "off"]
"""off: nobody wants it."""
AS_WANTED: tuple[SourcePhase, ...] = ("online", "off")


@dataclass
class SourceState:
    """What health says about a source."""

    phase: SourcePhase = "starting"
    enabled: bool = True
    paused_until: str = ""
    """When its pause is over, or `resumed`; empty: it is not paused."""
    captioned: int = 0
    problems: int = 0
    last_problem: dict[str, str] = field(default_factory=dict)
    picture_problem: str = ""
    """What is wrong with the frames that a camera delivers now, such as that they are black."""
    last_result_at: str = ""
    skipped: dict[str, int] = field(default_factory=dict)
    """Frames that were looked at and not captioned, by reason; of a camera."""

    def document(self) -> dict[str, Any]:
        """For health."""
        fields = asdict(self)
        return {"state": fields.pop("phase"), **fields}


Config = TypeVar("Config", bound=SourceConfig)


class Capture(ABC, Generic[Config]):
    """One source."""

    def __init__(self, name: str, config: Config, beat: Callable[[], None], on_change: Callable[[], None]) -> None:
        self.name = name
        self.config = config
        self.state = SourceState()
        self.beat = beat
        self._on_change = on_change
        self.left: list[Child] = []
        """Grabbers that were killed and did not go."""
        self.comes_and_goes = False
        """Told already, and no news any more."""

    @abstractmethod
    async def current(self) -> Frame:
        """The picture that somebody asked for: the newest there is. Raises PictureError."""

    @abstractmethod
    async def talk(self, child: Child) -> None:
        """All that is said with a grabber that is ready, for as long as it lives. Raises ChildError."""

    @abstractmethod
    def after_death(self, policy: RestartPolicy, error: ChildError) -> float:
        """What a grabber's death means; the seconds to wait before the next start."""

    @abstractmethod
    def failed(self, frame: Frame, reason: str) -> None:
        """There is no caption of this frame, and why."""

    async def wanted(self) -> None:
        """Wait until there is something to grab."""

    def is_stale(self, frame: Frame, taken_s: float) -> bool:
        """Whether a frame that came at `taken_s` (monotonic) is no longer worth a caption."""
        return False

    def captioned(self, frame: Frame, doubted: bool) -> None:
        """What came of this frame is on its way to the broker; `doubted`: another picture is needed to believe it."""

    def changed(self) -> None:
        """The configuration is another one."""

    async def run(self) -> None:
        """Capture for ever."""
        policy = RestartPolicy()
        while True:
            await self.wanted()
            await self._until_gone()
            try:
                await self._one_grabber(policy)
            except ChildError as error:
                await self.pause(self.after_death(policy, error))

    @property
    def hangs(self) -> bool:
        """Whether one of its grabbers is in the kernel's hands: each further one would only hang beside it."""
        self.left[:] = [child for child in self.left if child.returncode is None]
        return bool(self.left)

    async def _until_gone(self) -> None:
        if self.hangs:
            self.tell(self.config.place, HANGS)
            self.set_phase("offline")
        while self.hangs:
            await self.pause(1.0)

    async def pause(self, duration_s: float) -> None:
        """Wait, and show that this is on purpose."""
        await patiently(asyncio.sleep(duration_s), self.beat)

    async def _one_grabber(self, policy: RestartPolicy) -> None:
        """The life of one grabber."""
        argv, told = grabber_settings.argv(self.config), grabber_settings.settings(self.config)
        async with grabber(f"grabber {self.name}", argv, told, self.left) as (child, decoder):
            self.beat()
            policy.ready(time.monotonic())
            # of a source that is away it was told once; it is opened again every minute, for years
            level = logging.DEBUG if self.state.phase == "offline" else logging.INFO
            log.log(level, "source %s: watching with %s", self.name, decoder)
            await self.talk(child)

    def tell(self, where: str, reason: str) -> None:
        """Say what is wrong; in the log, and in health."""
        log.warning("source %s: %s", self.name, self.note(where, reason))

    def note(self, where: str, reason: str) -> str:
        """What is wrong, in health only; the words for the log."""
        shown = where.encode("utf-8", "backslashreplace").decode()
        self.state.problems += 1
        self.state.last_problem = {"where": shown, "reason": reason}
        self._on_change()
        return f"{shown!r}: {reason}"

    def set_phase(self, phase: SourcePhase) -> None:
        """What holds from now on."""
        if self.state.phase != phase:
            if self.state.phase == "offline" and phase == "online":
                log.log(logging.DEBUG if self.comes_and_goes else logging.INFO, "source %s: is back", self.name)
            self.state.phase = phase
            self._on_change()


AnyCapture = Capture[Any]


@asynccontextmanager
async def grabber(
    name: str, argv: Sequence[str], settings: dict[str, Any], left: list[Child], descriptors: Sequence[int] = ()
) -> AsyncIterator[tuple[Child, str]]:
    """A grabber that is ready, and what it reads pictures with; one that cannot be ended goes to those that are `left`.

    Raises ChildError.
    """
    child = await Child.start(name, argv, descriptors=descriptors)
    try:
        await child.send(Open(json.dumps(settings)), SILENCE_S)
        message = await child.receive(SILENCE_S)
        if not isinstance(message, GrabberReady):
            raise stranger(child, message)
        yield child, message.decoder
    finally:
        await child.stop(STOP_GRACE_S)
        if child.returncode is None:
            left.append(child)


async def next_picture(
    child: Child, waiting: Callable[[Idle], None], *, fresh: bool = False, patience_s: float = SILENCE_S
) -> Frame | Problem:
    """Ask a grabber for a picture, and wait as long as it says that it has none yet. Raises ChildError."""
    await child.send(Next(fresh), SILENCE_S)
    while True:
        match await child.receive(patience_s):
            case Idle() as idle:
                waiting(idle)
            case Frame() as frame:
                check(frame)
                return frame
            case Problem() as problem:
                return problem
            case other:
                raise stranger(child, other)


def stranger(child: Child, message: object) -> ChildDied:
    """The error for what a grabber must not say."""
    return ChildDied(f"the {child.name} sent {type(message).__name__}, and was ended")


def check(frame: Frame) -> None:
    """Raise ChildDied for a frame that is none: whoever made it cannot be trusted."""
    size = (frame.width_px, frame.height_px)
    if not all(0 < side <= MAX_SIDE_PX for side in size) or len(frame.payload) != 3 * frame.width_px * frame.height_px:
        raise ChildDied(f"the grabber sent {len(frame.payload)} bytes as a picture of {size}, and was ended")
    if not re.fullmatch(f"[0-9a-f]{{{2 * THUMBNAIL_PX**2}}}", frame.thumbnail_hex):
        raise ChildDied("the grabber sent a thumbnail that is not one, and was ended")
    if not all(0 <= ms <= LONGEST_MS for ms in (frame.capture_ms, frame.decode_ms)):
        raise ChildDied("the grabber sent an impossible time, and was ended")
