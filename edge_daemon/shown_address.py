"""What may be shown of an address: neither login nor query, nor values in its path. Pure.

A login with a bare / ? or # in it ends there, for FFmpeg as well, and the rest of it stands as a path or a query. Where
that may be so, nothing is shown. Many cameras want their login as a path: /user=admin&password=…&channel=1.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult

HIDDEN = "(hidden: in a login write / ? # @ as %2F %3F %23 %40)"
_LOGIN = re.compile(r"(?<=://)\S+@")
_VALUES = re.compile(r"(://[^\s?=]*[?=])[^\s'\"]+")


def host(parts: SplitResult) -> str:
    """Host and port."""
    behind = "" if parts.scheme == "file" else f"{parts.path}{parts.query}{parts.fragment}"
    return HIDDEN if "@" in behind else parts.netloc.rpartition("@")[2]


def place(parts: SplitResult) -> str:
    """The address without login and query; a path without a scheme is shown as it is."""
    if not parts.scheme:
        return parts.path
    shown = host(parts)
    return f"{parts.scheme}://{shown}{path(parts) if shown != HIDDEN else ''}"


def path(parts: SplitResult) -> str:
    """The path without what may be a login."""
    name, equals, value = parts.path.partition("=")
    return f"{name}=…" if equals and value and parts.scheme not in ("", "file") else parts.path


def in_text(text: str) -> str:
    """A text of somebody else, without logins and values in the addresses in it."""
    return _VALUES.sub(r"\1***", _LOGIN.sub("***@", text))
