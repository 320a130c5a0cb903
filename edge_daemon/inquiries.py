"""What a command asks about one picture: the picture is taken, waits in the line of requests, and is answered.

Pictures are decoded one at a time, each in a process of its own, and a few may wait: what is beyond that is refused. A
camera's are decoded where it is watched: whoever waits for one that is just being opened keeps nobody from the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from edge_daemon import snapshot
from edge_daemon.captioner import Captioner
from edge_daemon.capture import AnyCapture
from edge_daemon.commands import Ask, Caption, Detect
from edge_daemon.errors import CommandError, PictureError
from edge_daemon.jobs import Job
from edge_daemon.messages import Frame, Task
from edge_daemon.results import Origin, Result
from edge_daemon.slots import LONGEST_LINE, Slots
from edge_daemon.source_config import LiveSource
from edge_daemon.values import Values

Inquiry = Caption | Ask | Detect
MOST_PICTURES = 2
"""Pictures that came along and are not answered yet: each takes some 10 MiB of the daemon's memory with its message."""
FULL = "too many requests{1} are waiting ({0} of {0}); try again later"


class Inquiries:
    """All that is asked by commands about pictures."""

    def __init__(self, node: str, captures: Mapping[str, AnyCapture], slots: Slots[Job], captioner: Captioner) -> None:
        self._node = node
        self._captures = captures
        self._slots = slots
        self._captioner = captioner
        self._decoding = asyncio.Lock()
        self._pending: list[Inquiry] = []

    async def answer(self, inquiry: Inquiry) -> dict[str, Any]:
        """The result of one question, as a document that is no result of the source. Raises CommandError."""
        (made,) = await self._ask(inquiry, [self._task(inquiry)], is_kept=False)
        if isinstance(inquiry, Ask):
            (made,) = Values().typed("", [inquiry.question], [made])
        return made.document()

    async def trigger(self, source: str) -> dict[str, Any]:
        """What the source wants to know of every picture, now: results like others; the first. Raises CommandError."""
        return (await self._ask(Caption(source, None), None, is_kept=True))[0].document()

    async def _ask(self, inquiry: Inquiry, tasks: list[Task] | None, *, is_kept: bool) -> list[Result]:
        self._refuse(inquiry.source)
        pictures = [one for one in self._pending if one.picture is not None]
        if inquiry.picture is not None and len(pictures) >= MOST_PICTURES:
            raise CommandError(FULL.format(MOST_PICTURES, " with a picture"))
        if len(self._pending) > LONGEST_LINE:  # one is in work
            raise CommandError(FULL.format(LONGEST_LINE, ""))
        self._pending.append(inquiry)
        try:
            frame = await self._frame(inquiry)
            self._refuse(inquiry.source)
            origin = Origin(self._node, inquiry.source or "", frame, "request", time.monotonic())
            job = Job(origin, tasks, is_kept, asyncio.get_running_loop().create_future())
            assert job.answer is not None
            if not self._slots.ask(job):
                raise CommandError(FULL.format(LONGEST_LINE, ""))
            return await job.answer
        finally:
            self._pending.remove(inquiry)

    def _refuse(self, source: str | None) -> None:
        """Raise CommandError for what cannot be answered now."""
        if source is not None and not self._captures[source].config.enabled:
            raise CommandError(f"the source {source} is switched off; set enabled to true first")
        if not self._captioner.is_allowed:
            raise CommandError("not enough free memory to make captions at the moment; health says more")

    async def _frame(self, inquiry: Inquiry) -> Frame:
        capture = None if inquiry.source is None else self._captures[inquiry.source]
        try:
            if capture is not None and isinstance(capture.config, LiveSource):
                return await capture.current()  # of a process that is there anyway; it may take a minute to open
            async with self._decoding:
                if capture is not None:
                    return await capture.current()
                assert inquiry.picture is not None
                return await snapshot.of_bytes(inquiry.picture.payload)
        except PictureError as error:
            raise CommandError(str(error)) from error

    def _task(self, inquiry: Inquiry) -> Task:
        match inquiry:
            case Ask():
                return Task(inquiry.question.id, "query", inquiry.question.ask)
            case Detect():
                return Task("detect", "detect", inquiry.what)
        usual = self._captures[inquiry.source].config.caption if inquiry.source else "short"
        return Task("caption", "caption", inquiry.length or ("short" if usual == "none" else usual))
