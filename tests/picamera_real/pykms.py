"""Stand-in for the Python module of kmsxx: picamera2 imports it at its start, and uses it in its DRM preview only."""

from __future__ import annotations


class AnyFormat:
    def __getattr__(self, name: str) -> str:
        return name


PixelFormat = AnyFormat()
Card = ResourceManager = None
