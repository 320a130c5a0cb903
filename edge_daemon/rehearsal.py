"""The picture that the daemon has captioned at its start, to learn what one takes on this board. Plain Python."""

from __future__ import annotations

from edge_daemon.messages import Request, Task

SIDE_PX = 512
"""What a frame has on its longer side: as many crops as there can be."""
MAX_TOKENS = 20
"""About a short caption; and the start is not kept waiting for long by a model that talks."""
TASK = Task("rehearsal", "caption", "short")


def request() -> Request:
    """A picture of soft colours: red grows to the right, green downwards, blue in both."""
    shades = bytes(position * 255 // (SIDE_PX - 1) for position in range(SIDE_PX))
    pixels = bytearray(SIDE_PX * SIDE_PX * 3)
    pixels[0::3] = shades * SIDE_PX
    pixels[1::3] = b"".join(bytes([shade]) * SIDE_PX for shade in shades)
    pixels[2::3] = b"".join(shades[row // 2 :] + shades[: row // 2] for row in range(SIDE_PX))
    return Request(SIDE_PX, SIDE_PX, [TASK], MAX_TOKENS, 0.0, 1.0, bytes(pixels))
