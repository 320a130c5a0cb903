"""A place for gigabytes that are needed for a while."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DISK_TMP = Path("/var/tmp")
"""On the disk, where /tmp is memory on many systems (file-hierarchy(7))."""


def scratch() -> Path:
    """TMPDIR, or else a disk."""
    if "TMPDIR" in os.environ:
        return Path(os.environ["TMPDIR"])
    return DISK_TMP if os.access(DISK_TMP, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
