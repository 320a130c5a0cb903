"""Child side of the pipe to the daemon: the first thing that every child opens.

A child's file descriptors 0 and 1 belong to the protocol, so they are moved away before anything heavy is
imported: a stray `print` of some library goes to stderr (and so to the journal), never into a message.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from edge_daemon import messages, wire

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: send me a signal when my parent dies."""


class Pipe:
    """Messages from and to the daemon."""

    def __init__(self) -> None:
        """Take descriptors 0 and 1; leave /dev/null and stderr in their place."""
        self._input = os.fdopen(os.dup(0), "rb")
        self._output = os.fdopen(os.dup(1), "wb")
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)

    def read(self) -> Any | None:
        """The daemon's next message, or None when it has gone."""
        message = wire.read(self._input)
        return None if message is None else messages.unpack(message)

    def write(self, item: Any) -> None:
        """Send one message at once. Raises BrokenPipeError when the daemon has gone."""
        self._output.write(wire.encode(messages.pack(item)))
        self._output.flush()


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the daemon dies.

    The end of the pipe is seen only between two requests; a child that is stuck in native code needs this.
    A daemon that died before this call is noticed by the end of the pipe.
    """
    if sys.platform != "linux":
        return  # the end of the pipe has to do
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def volunteer_for_oom(score: int) -> None:
    """Tell the kernel to kill this process before the daemon when memory runs out (0…1000)."""
    if sys.platform != "linux":
        return
    Path("/proc/self/oom_score_adj").write_text(f"{score}\n", encoding="ascii")
