"""From packets to the newest good frame, by FFmpeg's decoders through PyAV.

The decoder remembers how far it came, so that packets which follow cost themselves only, and a picture in the middle
of a group everything from the key frame on. A frame that FFmpeg had to guess parts of is none.
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
    """A good frame, and which packet it is of."""

    frame: av.VideoFrame = field(repr=False)
    number: int
    at_s: float


class Developer:
    """The decoder of one stream. For one thread at a time."""

    def __init__(self, context: VideoCodecContext) -> None:
        """Nothing is decoded yet."""
        context.thread_count = 1  # the model needs the cores more, and more threads need more frames in memory
        context.copy_opaque = True
        self._context = context
        self._at = 0  # the packet that the decoder took last; 0: it must begin with a key frame
        self._emptied_at = 0
        self._newest: Developed | None = None
        self.failing_since_s: float | None = None
        """Monotonic: since when every packet that was tried gave a broken frame or none."""
        self.failures = 0
        """How often since then."""

    def develop(self, packets: Sequence[Arrived], *, now: bool, breathe: Callable[[], None]) -> Developed | None:
        """The newest good frame when these have been decoded: a group from its key frame on, or what follows.

        `now`: a frame that the decoder keeps back, for those that are shown before it, is not waited for.
        `breathe` is called between packets. Raises MemoryError.
        """
        rest = self._not_yet_decoded(packets)
        came = False
        for arrived in rest:
            breathe()
            came = self._keep(self._decode(arrived)) or came
        if rest and now and not came:
            if not self._keep(self._decode(None)):
                self._failed()
            self._at, self._emptied_at = 0, rest[-1].number
        return self._newest

    def _not_yet_decoded(self, packets: Sequence[Arrived]) -> Sequence[Arrived]:
        """What the decoder has to be fed with; it is emptied when it has to begin anew."""
        if not packets or packets[-1].number <= max(self._at, self._emptied_at):
            return ()
        first = packets[0]
        if self._at and first.number <= self._at + (not first.is_key):
            return [arrived for arrived in packets if arrived.number > self._at]
        if not first.is_key:
            return ()  # what it builds upon was let go; until the next key frame there is nothing to see
        self._context.flush_buffers()
        return packets

    def _decode(self, arrived: Arrived | None) -> list[av.VideoFrame]:
        """The frames that a packet completes; None: all that the decoder still keeps."""
        if arrived is not None:
            arrived.packet.opaque = (arrived.number, arrived.at_s)
            self._at = arrived.number
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
                number, at_s = cast(tuple[int, float], frame.opaque)
                self._newest = Developed(frame, number, at_s)
                self.failing_since_s, self.failures = None, 0
        return bool(frames)

    def _failed(self) -> None:
        self.failures += 1
        if self.failing_since_s is None:
            self.failing_since_s = time.monotonic()
