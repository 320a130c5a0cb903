"""A grabber of a picamera source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_daemon import grabber_settings
from edge_daemon.messages import Frame
from edge_daemon.source_config import PicameraConfig
from tests.grabbers import Grabber


def grabber(config: PicameraConfig, argv: Sequence[str] = ()) -> Grabber:
    """`argv`: how it is started, if not as the daemon does it."""
    return Grabber(grabber_settings.settings(config), argv or grabber_settings.argv(config))


def pixels(frame: Frame) -> np.ndarray[Any, Any]:
    """Rows, columns, RGB."""
    return np.frombuffer(frame.payload, np.uint8).reshape(frame.height_px, frame.width_px, 3)
