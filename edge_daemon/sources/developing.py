"""From packets to the newest good frame, by FFmpeg's decoders through PyAV.

The decoder remembers how far it came, so that packets which follow cost themselves only, and a picture in the middle
of a group everything from the key frame on. A frame that FFmpeg had to guess parts of is none, and what builds upon it
is not looked at: FFmpeg does not call that broken, but it shows the same ghosts until the next key frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import av
from av.video.codeccontext import VideoCodecContext

from edge_daemon.sources.newest import Arrived


@dataclass(frozen=True)
class Developed:
    """A good frame, and when its packet came."""

    frame: av.VideoFrame = field(repr=False)
    number: int
    """The packet that was the last when this frame was the newest."""
    at_s: float
    """Unix time."""


class Developer:
    """The decoder of one stream. For one thread at a time."""

    def __init__(self, context: VideoCodecContext) -> None:
        """Nothing is decoded yet."""
        context.thread_count = 1  # the model needs the cores more, and more threads need more frames in memory
        context.copy_opaque = True
        if context.name == "mjpeg":  # otherwise what is missing of a JPEG is grey, and nobody says so
            context.options = {"err_detect": "explode"}
        self._context = context
        self._at = 0  # the packet that the decoder took last; 0: it must begin with a key frame
        self._fed = 0  # the same, but it stays
        self._emptied_at = 0
        self._group = 0  # the key frame that the decoder began with
        self._broken = 0  # the key frame of a group that broke
        self._newest: Developed | None = None
        self._latest = 0, 0.0  # the last packet that was shown, and its time: ordered by number, for clocks are set
        self.failing_since_s: float | None = None
        """Monotonic: since when every packet that was tried gave a broken frame or none."""
        self.failures = 0
        """How often since then."""

    def develop(self, packets: Sequence[Arrived], *, now: bool, breathe: Callable[[], None]) -> Developed | None:
        """The newest good frame when these have been decoded: a group from its key frame on, or what follows.

        `now`: a key frame that the decoder keeps back, for others that may be shown before it, is not waited for; it
        has to be decoded again with what follows. `breathe` is called between packets. Raises MemoryError.
        """
        if not packets or (now and packets[-1].number <= self._emptied_at):
            return self._newest
        rest = self._not_yet_decoded(packets)
        shown = self._newest is not None and self._newest.number >= packets[0].number
        came = False
        for arrived in rest:
            breathe()
            came = self._keep(self._decode(arrived)) or came
            if self._broken == self._group:
                return self._newest
        if now and rest and packets[0].is_key and not (came or shown):
            self._at, self._emptied_at = 0, rest[-1].number
            if not self._keep(self._decode(None)):
                self._failed()
        return self._newest

    def _not_yet_decoded(self, packets: Sequence[Arrived]) -> Sequence[Arrived]:
        """What the decoder has to be fed with; it is emptied when it has to begin anew."""
        first = packets[0]
        if packets[-1].number <= self._at or first.number == self._broken:
            return ()
        if self._at and first.number <= self._at + (not first.is_key):
            return [arrived for arrived in packets if arrived.number > self._at]
        if not first.is_key:
            return ()  # what it builds upon was let go; until the next key frame there is nothing to see
        self._context.flush_buffers()
        self._group = first.number
        return packets

    def _decode(self, arrived: Arrived | None) -> list[av.VideoFrame]:
        """The frames that a packet completes; None: all that the decoder still keeps."""
        if arrived is not None:
            arrived.packet.opaque = arrived.number, arrived.at_s
            self._at = self._fed = arrived.number
        try:
            return self._context.decode(None if arrived is None else arrived.packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            self._failed()
            return []

    def _keep(self, frames: Sequence[av.VideoFrame]) -> bool:
        """Keep the newest good one; whether there was any, good or not."""
        for frame in frames:
            if frame.is_corrupt:
                self._failed()
            else:
                # what others build upon comes before them and is shown after them
                self._latest = max(self._latest, cast(tuple[int, float], frame.opaque))
                self._newest = Developed(frame, self._fed, self._latest[1])
                self.failing_since_s, self.failures = None, 0
        return bool(frames)

    def _failed(self) -> None:
        self.failures += 1
        self._at, self._broken = 0, self._group
        if self.failing_since_s is None:
            self.failing_since_s = time.monotonic()
