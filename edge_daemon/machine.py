"""Which machine this is: /etc/machine-id, which is made once and stays. A leaf."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from pathlib import Path

FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
KEY = b"edge-daemon client id"
"""machine-id(5): the id itself is not to be shown; a keyed hash of it is ours alone."""
DIGITS = 8


def machine_id() -> str:
    """The id, or nothing where there is none."""
    for file in FILES:
        with suppress(OSError, UnicodeDecodeError):
            if found := file.read_text().strip():
                return found
    return ""


def client_id(node: str) -> str:
    """The name of a node at its broker: other than that of a node of the same name on another machine."""
    keyed = hmac.new(KEY, f"{machine_id()}/{node}".encode(), hashlib.sha256).hexdigest()
    return f"edge-daemon-{node}-{keyed[:DIGITS]}"
