"""Stand-in for libcamera's Python bindings: only what picamera.py uses of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transform:
    """How the picture is turned."""

    hflip: bool = False
    vflip: bool = False
