"""The picture that the daemon has captioned at its start, to learn what one takes on this board. Plain Python."""

from __future__ import annotations

from edge_daemon.messages import Request, Task
from edge_daemon.picture_limits import MAX_SIDE_PX

MAX_TOKENS = 20
"""About a short caption; and the start is not kept waiting for long by a model that talks."""
TASK = Task("rehearsal", "caption", "short")


def request() -> Request:
    """A picture of soft colours, as large as a frame can be: red grows to the right, green downwards, blue in both."""
    shades = bytes(position * 255 // (MAX_SIDE_PX - 1) for position in range(MAX_SIDE_PX))
    pixels = bytearray(MAX_SIDE_PX * MAX_SIDE_PX * 3)
    pixels[0::3] = shades * MAX_SIDE_PX
    pixels[1::3] = b"".join(bytes([shade]) * MAX_SIDE_PX for shade in shades)
    pixels[2::3] = b"".join(shades[row // 2 :] + shades[: row // 2] for row in range(MAX_SIDE_PX))
    return Request(MAX_SIDE_PX, MAX_SIDE_PX, [TASK], MAX_TOKENS, 0.0, 1.0, bytes(pixels))
