"""Lets the real picamera2 open the `virtual` camera of libcamera 0.4, which is no Raspberry Pi camera.

What it differs in, and what is done about it here, by patches of picamera2 that a Pi does not need:

* it has no raw stream: `_get_raw_modes` asks for the viewfinder's modes instead;
* it delivers NV12 only, whatever is asked for: its buffers become RGB arrays, and it is said to deliver BGR888;
* it says that it turns the picture, and does not: it is said to turn nothing;
* it refuses buffers of one plane, which DmaAllocator makes: LibcameraAllocator takes its place.
"""

from __future__ import annotations

from typing import Any

import libcamera
import numpy as np
from picamera2 import Picamera2
from picamera2.allocators import LibcameraAllocator
from picamera2.request import Helpers


def raw_modes(self: Any) -> list[dict[str, Any]]:
    config = self.camera.generate_configuration([libcamera.StreamRole.Viewfinder])
    formats = config.at(0).formats
    return [
        {"format": str(pixel), "size": (size.width, size.height)}
        for pixel in formats.pixel_formats
        for size in formats.sizes(pixel)
    ] or [{"format": str(config.at(0).pixel_format), "size": (config.at(0).size.width, config.at(0).size.height)}]


def rgb(self: Any, buffer: Any, config: dict[str, Any]) -> Any:
    """ITU-R BT.601, limited range."""
    (width, height), stride = config["size"], config["stride"]
    grey = buffer[: stride * height].reshape(height, stride)[:, :width].astype(np.float32)
    colours = buffer[stride * height : stride * height * 3 // 2].reshape(height // 2, stride)[:, :width]
    blue, red = (colours[:, start::2].repeat(2, 0).repeat(2, 1).astype(np.float32) - 128 for start in (0, 1))
    grey = 1.164 * (grey - 16)
    mixed = np.stack([grey + 1.596 * red, grey - 0.392 * blue - 0.813 * red, grey + 2.017 * blue], -1)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def adapt() -> None:
    configure, configuration = Picamera2.configure, Picamera2.camera_configuration

    def with_its_own_buffers(self: Any, config: Any = None) -> None:
        self.allocator = LibcameraAllocator(self.camera)
        configure(self, config)

    def as_it_is(self: Any) -> dict[str, Any]:
        config: dict[str, Any] = configuration(self)
        assert config["main"]["format"] == "NV12", config
        return {**config, "main": {**config["main"], "format": "BGR888"}, "transform": libcamera.Transform()}

    Picamera2._get_raw_modes = raw_modes
    Helpers._make_array_shared = rgb
    Picamera2.configure = with_its_own_buffers
    Picamera2.camera_configuration = as_it_is


adapt()
