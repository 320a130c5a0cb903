"""The message that carries a picture, made from it."""

from __future__ import annotations

from edge_daemon.messages import FileKey, Frame
from edge_daemon.picture import Picture


def frame_of(
    key: FileKey | None, captured_at_s: float, loaded: Picture, decode_ms: float, capture_ms: float = 0.0
) -> Frame:
    """The message that carries a picture; `key` None: it is no file of a folder."""
    return Frame(
        captured_at_s=captured_at_s,
        width_px=loaded.width_px,
        height_px=loaded.height_px,
        original_width_px=loaded.original_width_px,
        original_height_px=loaded.original_height_px,
        thumbnail_hex=loaded.thumbnail.hex(),
        capture_ms=capture_ms,
        decode_ms=decode_ms,
        file=key,
        payload=loaded.pixels,
    )
