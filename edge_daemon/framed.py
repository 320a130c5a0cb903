"""The picture that was captioned, as a JPEG that is small enough to be published; what was found in it may be framed.

For the worker, which has the picture and an image library.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from edge_daemon.messages import ImageWish, TaskResult
from edge_daemon.units import KIB

POOREST_QUALITY = 20
"""Below it a picture is blocks."""
QUALITY_STEP = 15
FRAME_PX = 2
COLOUR = (255, 64, 0)


def jpeg(picture: Image.Image, wish: ImageWish, found: Sequence[tuple[str, TaskResult]] = ()) -> tuple[bytes, str]:
    """The JPEG, in the best quality up to the wished one that fits; or nothing, and why.

    `found`: what was looked for, and its boxes, if they are to be drawn.
    """
    if wish.boxes:
        picture = picture.copy()
        for name, result in found:
            _draw(picture, name, result.objects)
    quality = wish.quality
    while len(data := _encoded(picture, quality)) > wish.max_bytes and quality > POOREST_QUALITY:
        quality = max(POOREST_QUALITY, quality - QUALITY_STEP)
    if len(data) <= wish.max_bytes:
        return data, ""
    size_px = f"{picture.width}×{picture.height}"
    return b"", (
        f"the image of {size_px} takes {len(data) / KIB:.0f} KiB at quality {quality}; "
        f"image.max_kib allows {wish.max_bytes // KIB}: it is not published"
    )


def _encoded(picture: Image.Image, quality: int) -> bytes:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=quality)
    return written.getvalue()


def _draw(picture: Image.Image, name: str, boxes: Sequence[dict[str, float]]) -> None:
    pen = ImageDraw.Draw(picture)
    for box in boxes:
        left, right = (box[side] * (picture.width - 1) for side in ("x_min", "x_max"))
        top, bottom = (box[side] * (picture.height - 1) for side in ("y_min", "y_max"))
        pen.rectangle((left, top, right, bottom), outline=COLOUR, width=FRAME_PX)
        pen.text((left + 2 * FRAME_PX, top + FRAME_PX), name, fill=COLOUR)
