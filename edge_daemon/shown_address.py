"""What may be shown of an address: neither login nor query. Pure.

A login with a bare / ? or # in it ends there, for FFmpeg as well, and the rest of it stands as a path or a query. Where
that may be so, nothing is shown.
"""

from __future__ import annotations

from urllib.parse import SplitResult

HIDDEN = "(hidden: in a login write / ? # @ as %2F %3F %23 %40)"


def host(parts: SplitResult) -> str:
    """Host and port."""
    behind = "" if parts.scheme == "file" else f"{parts.path}{parts.query}{parts.fragment}"
    return HIDDEN if "@" in behind else parts.netloc.rpartition("@")[2]


def place(parts: SplitResult) -> str:
    """The address without login and query; a path without a scheme is shown as it is."""
    if not parts.scheme:
        return parts.path
    shown = host(parts)
    return f"{parts.scheme}://{shown}{parts.path if shown != HIDDEN else ''}"
