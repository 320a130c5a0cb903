"""Where log lines go: stderr, which systemd takes into the journal with the right priority."""

from __future__ import annotations

import logging
import os
import sys

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog priorities; a line that begins with <N> is taken with this priority (sd-daemon(3))."""


class JournalFormatter(logging.Formatter):
    """One line a record; the journal adds time, unit and process itself."""

    def format(self, record: logging.LogRecord) -> str:
        """The priority on every line, also on those of a traceback."""
        prefix = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(level: str) -> None:
    """Log to stderr: for the journal when systemd listens there, for people otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
