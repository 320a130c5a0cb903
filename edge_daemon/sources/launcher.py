"""The last step before somebody else's program: `python -m edge_daemon.sources.launcher PARENT PROGRAM ARGUMENTS…`.

It asks for the end of its parent to be its own, puts back what Python and the grabber changed, and becomes the program.
A process of its own, because nothing of ours can safely run between fork and exec in one that has threads.
"""

from __future__ import annotations

import os
import signal
import sys

from edge_daemon.pipe import die_with_parent

CANNOT_START = 126
"""As a shell has it."""


def main() -> None:
    """Become the program."""
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):  # it went before we could ask
        sys.exit(CANNOT_START)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
