"""Where pictures come from: one module a kind, one Protocol for all. A leaf but for the messages.

A source runs in a grabber child (grabber.py). It is asked for one picture at a time and talks to the daemon
through `Daemon`; it knows nothing of pipes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge_daemon.messages import FileKey, Frame, Problem


class Daemon(Protocol):
    """The daemon, as a source sees it while the daemon waits for a picture."""

    @property
    def fresh(self) -> bool:
        """Whether somebody asked for this picture: a camera's newest frame, whatever that costs."""

    def offer(self, files: list[FileKey], has_gone: Callable[[str], bool]) -> list[bool]:
        """Ask which of these files have not been dealt with, in their order. Few enough for one message.

        `has_gone` says of other files whether they are no longer there: the daemon may want to know it of some.
        """

    def opening(self, file: FileKey) -> None:
        """Say which file is read next."""

    def idle(self, problem: str, late: str = "") -> None:
        """Say that there is nothing to deliver yet, and why, if the source is not well, or well but `late`.

        To be called often: it is passed on at once the first time, then every few seconds.
        """

    def alive(self) -> None:
        """Say that looking for pictures goes on. To be called often: it is passed on every few seconds."""


class Source(Protocol):
    """What delivers pictures."""

    @property
    def decoder(self) -> str:
        """What reads the pictures, with its version."""

    def next(self, daemon: Daemon) -> Frame | Problem:
        """Wait for the next picture, or for the next reason why there is none."""
