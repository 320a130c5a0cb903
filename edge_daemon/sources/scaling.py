"""A decoded video frame as a picture: square pixels, RGB, small, with its thumbnail. By libswscale, through PyAV.

A filter that averages areas, because a camera's picture is shrunk several times: it is the quickest that uses every
pixel (3 ms for a 4K frame on the machine where this was written, Lanczos takes 9), and what FFmpeg calls AREA.
"""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.reformatter import VideoReformatter

from edge_daemon.messages import THUMBNAIL_PX
from edge_daemon.picture import Picture, fit

_UNSPECIFIED, _ITU709 = 2, 1
"""From libavutil/pixfmt.h, as numbers in the stream; and _ITU709 from libswscale/swscale.h, by chance the same."""
_HIGH_DEFINITION_PX = 720
"""Pictures of so many lines mean ITU-R BT.709 when they do not say which colours they mean, as in all players."""
_ODDEST_SHAPE = 4
"""Pixels that are said to be longer than this many times their width are a mistake in the stream."""


class Scaler:
    """Makes pictures of one stream; it keeps what libswscale prepares for a size."""

    def __init__(self, max_side_px: int) -> None:
        self._max_side_px = max_side_px
        self._shrink = VideoReformatter()
        self._squeeze = VideoReformatter()

    def picture(self, frame: av.VideoFrame, pixel_shape: Fraction | None) -> Picture:
        """The frame, shrunk; `pixel_shape` is a pixel's width by its height, None or 0 when nobody knows."""
        width, height = square_pixels(frame.width, frame.height, pixel_shape)
        to_width, to_height = fit(width, height, self._max_side_px)
        unnamed_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HIGH_DEFINITION_PX
        small = self._shrink.reformat(
            frame,
            width=to_width,
            height=to_height,
            format="rgb24",
            src_colorspace=_ITU709 if unnamed_hd else None,
            interpolation="AREA",
            threads=1,
        )
        grey = self._squeeze.reformat(
            small,
            width=THUMBNAIL_PX,
            height=THUMBNAIL_PX,
            format="gray",
            interpolation="AREA",
            dst_color_range="JPEG",
            threads=1,
        )
        return Picture(to_width, to_height, width, height, _rows(small, 3), _rows(grey, 1))


def square_pixels(width_px: int, height_px: int, pixel_shape: Fraction | None) -> tuple[int, int]:
    """The size that shows the picture in its true shape: the short side of its pixels is stretched."""
    if not pixel_shape or not 1 / _ODDEST_SHAPE <= pixel_shape <= _ODDEST_SHAPE:
        return width_px, height_px
    if pixel_shape > 1:
        return round(width_px * pixel_shape), height_px
    return width_px, round(height_px / pixel_shape)


def _rows(frame: av.VideoFrame, bytes_per_pixel: int) -> bytes:
    """The pixels without what pads each row."""
    plane = frame.planes[0]
    row_bytes, data = frame.width * bytes_per_pixel, memoryview(plane)
    starts = range(0, frame.height * plane.line_size, plane.line_size)
    return b"".join(data[start : start + row_bytes] for start in starts)
