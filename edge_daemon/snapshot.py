"""One picture on request, decoded by a grabber that lives for it alone: the daemon itself looks into no picture.

A folder's current picture is its newest file, whether it was captioned or not. A picture that came with a command is
handed over as a file in memory: nothing is written to a disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from edge_daemon import grabber_settings
from edge_daemon.capture import SILENCE_S, grabber, next_picture
from edge_daemon.child import Child
from edge_daemon.errors import ChildError, PictureError
from edge_daemon.messages import Frame, Problem
from edge_daemon.picture_limits import MAX_SIDE_PX
from edge_daemon.source_config import FolderConfig


async def of_folder(config: FolderConfig, left: list[Child]) -> Frame:
    """The newest picture of a folder; a grabber that cannot be ended goes to those that are `left`.

    Raises PictureError.
    """
    return await _take(grabber_settings.of_current_picture(config), config.decode_timeout_s, left)


async def of_bytes(payload: bytes) -> Frame:
    """A picture that came along, within the grabber's own limits. Raises PictureError."""
    with os.fdopen(os.memfd_create("picture"), "wb", buffering=0) as file:
        file.write(payload)
        options = {"type": "single", "path": f"/proc/self/fd/{file.fileno()}", "max_side_px": MAX_SIDE_PX}
        return await _take(options, 0.0, [], [file.fileno()])


async def _take(
    told: dict[str, object], decode_timeout_s: float, left: list[Child], descriptors: Sequence[int] = ()
) -> Frame:
    try:
        async with grabber("grabber of one picture", grabber_settings.argv(), told, left, descriptors) as (child, _):
            answer = await next_picture(child, lambda _: None, patience_s=SILENCE_S + decode_timeout_s)
    except ChildError as error:
        raise PictureError(f"reading the picture: {error}") from error
    if isinstance(answer, Problem):
        raise PictureError(f"{answer.file.name}: {answer.reason}" if answer.file else answer.reason)
    return answer
