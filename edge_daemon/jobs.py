"""One picture on its way to the worker, what is wanted of it, and who waits for the answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edge_daemon.errors import CommandError
from edge_daemon.messages import Task
from edge_daemon.results import Origin, Result

Answer = asyncio.Future[list[Result]]


@dataclass(frozen=True)
class Job:
    """A picture of a source, or one that came with a command (its source is empty then)."""

    origin: Origin
    tasks: list[Task] | None = None
    """None: what its source wants to know of every picture, when its turn comes."""
    is_kept: bool = True
    """Whether what comes out are results of the source, kept until the broker has them."""
    answer: Answer | None = None
    """Of a command; nobody waits any more when it is done."""

    def done(self, made: list[Result], errors: str) -> None:
        """These results came out; none, and why."""
        if not made:
            self.failed(errors)
        elif self.answer is not None and not self.answer.done():
            self.answer.set_result(made)

    def failed(self, reason: str) -> None:
        """Nothing came out."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(CommandError(reason))
            self.answer.exception()  # whether or not anybody still waits for it
