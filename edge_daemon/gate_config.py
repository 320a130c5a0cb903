"""The part of the configuration that says when a frame of a camera is worth a caption."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edge_daemon.sections import Section

LONGEST_HEARTBEAT_S = 7 * 86_400.0


class GateConfig(Section):
    """When a frame is worth a caption."""

    change: bool = True
    """Only frames that differ from the last captioned one; false: every frame that is looked at."""
    sensitivity: Annotated[int, Field(ge=1, le=10)] = 5
    heartbeat_s: Annotated[float, Field(ge=0, le=LONGEST_HEARTBEAT_S)] = 3600.0
    """A scene that does not change is captioned so often nevertheless; 0: never."""
    cooldown_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    """At least so long between two captions, from the last published result on; whoever asks need not wait."""
