"""How FFmpeg opens any camera, and what its errors mean whatever the camera is."""

from __future__ import annotations

import errno

import av

from edge_daemon.rlimits import data_limit_bytes

QUICKLY = {"analyzeduration": "500000", "probesize": "1000000"}
"""FFmpeg studies a stream for up to 5 s and 5 MB before it gives the first packet; cameras are simple. Microseconds,
bytes. Not `nobuffer`, which is often advised: it drops what was studied, the first key frame, and saves nothing later.
"""


def memory_in_words() -> str:
    """The words for a stream that does not fit."""
    limit_bytes = data_limit_bytes()
    has = "there is" if limit_bytes is None else f"the {limit_bytes / 1e6:.0f} MB that it may use"
    return f"decoding it needs more memory than {has}; a smaller picture (most cameras have a second stream) needs less"


def in_words(error: Exception) -> str:
    """What no kind of camera has words of its own for; never the error's own text, which has the address in it."""
    if isinstance(error, MemoryError):
        return memory_in_words()
    if isinstance(error, av.error.InvalidDataError):
        return "what it sends is not a video that FFmpeg knows"
    if isinstance(error, av.error.DemuxerNotFoundError | av.error.OptionNotFoundError):
        return "this FFmpeg was built without what is needed to read it"
    text = getattr(error, "strerror", None)
    return f"FFmpeg says: {text}" if text else f"FFmpeg says: {type(error).__name__}"


def number_of(error: Exception) -> str:
    """The name of the system's error, such as ECONNREFUSED; empty when it is none."""
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, "") if isinstance(number, int) else ""
