"""What is configured for a picamera, in libcamera's words, and whether a camera can do it. Pure.

A leaf of the standard library: it runs in the system's Python, beside picamera.py, which loads it by its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AF_MODES = {"manual": 0, "auto": 1, "continuous": 2}
AF_TRIGGER_START = 0
HDR_OFF, HDR_SINGLE_EXPOSURE = 0, 3
"""From libcamera's control_ids."""


@dataclass(frozen=True)
class Settings:
    """What Open says; the keys of the configuration, and the longer side of a frame."""

    camera: int
    width_px: int
    height_px: int
    fps: float
    rotation: int
    hflip: bool
    vflip: bool
    autofocus: str | None
    lens_position: float | None
    exposure_us: int | None
    gain: float | None
    exposure_value: float | None
    hdr: bool | None
    tuning_file: str | None
    open_timeout_s: float
    read_timeout_s: float
    max_side_px: int

    @property
    def flips(self) -> tuple[bool, bool]:
        """Horizontal and vertical; half a turn is both."""
        half_turn = self.rotation == 180
        return self.hflip != half_turn, self.vflip != half_turn

    @property
    def stream_size(self) -> tuple[int, int]:
        """What the image processor is asked for: the configured shape, no larger than the model sees, even."""
        scale = min(1.0, self.max_side_px / max(self.width_px, self.height_px))
        width_px, height_px = (max(2, round(side * scale / 2) * 2) for side in (self.width_px, self.height_px))
        return width_px, height_px

    def sensor_size(self, full: tuple[int, int]) -> tuple[int, int]:
        """What the sensor is asked for: half its resolution (`full`), unless more is configured.

        The sensors of Raspberry Pi's cameras have a mode of that size that sees everything; most of their smaller ones
        show the middle of the picture only, and larger ones take more of the camera's memory.
        """
        return max(self.width_px, full[0] // 2), max(self.height_px, full[1] // 2)


def number_problem(cameras: Sequence[Mapping[str, Any]], number: int) -> str:
    """Why there is no camera of this number; empty when there is."""
    if not cameras:
        return (
            "no camera was found: check the ribbon cable at both ends, that /boot/firmware/config.txt has "
            "camera_auto_detect=1, and that this user is in the group video; `rpicam-hello --list-cameras` must show it"
        )
    if number >= len(cameras):
        there = ", ".join(f"{place} ({info.get('Model', '?')})" for place, info in enumerate(cameras))
        return f"camera is {number}, but there is only {there}"
    return ""


def tuning_problem(file: str | None) -> str:
    """Why libcamera would stumble over a tuning file."""
    try:
        if file is not None:
            json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        own = "/usr/share/libcamera/ipa/rpi/"
        return f"tuning_file: {file!r} is not a tuning file ({error}); libcamera's own are in {own}"
    return ""


def wishes(settings: Settings, hdr_is_set: bool) -> list[tuple[str, str, Any]]:
    """What is configured: its key, libcamera's control for it, and that control's value."""
    hdr = HDR_SINGLE_EXPOSURE if settings.hdr and not hdr_is_set else None
    asked = [
        ("autofocus", "AfMode", AF_MODES.get(settings.autofocus or "")),
        ("lens_position", "LensPosition", settings.lens_position),
        ("exposure_us", "ExposureTime", settings.exposure_us),
        ("gain", "AnalogueGain", settings.gain),
        ("exposure_value", "ExposureValue", settings.exposure_value),
        ("hdr", "HdrMode", hdr),
    ]
    return [(key, control, value) for key, control, value in asked if value is not None]


def control_problem(settings: Settings, limits: Mapping[str, Any], hdr_is_set: bool) -> str:
    """What of the configuration this camera cannot do, whose controls have these limits (least, most, default)."""
    for key, control, value in wishes(settings, hdr_is_set):
        shown = getattr(settings, key)
        if control not in limits:
            return f"{key} is {shown}, but this camera cannot do that (it has no {control}): leave {key} out"
        least, most = limits[control][:2]
        if not least <= value <= most:
            return f"{key} is {shown}; this camera supports {least:g} to {most:g}"
    least_us, frame_us = limits.get("FrameDurationLimits", (0, 0))[0], frame_time(settings, limits)
    if frame_us < least_us:
        return f"fps is {settings.fps:g}; at this size the camera supports at most {1e6 / least_us:.3g}"
    if frame_us and settings.exposure_us is not None and settings.exposure_us > frame_us:
        return f"exposure_us is {settings.exposure_us}; with fps {settings.fps:g} it can be at most {frame_us}"
    return ""


def controls(settings: Settings, limits: Mapping[str, Any], hdr_is_set: bool) -> dict[str, Any]:
    """Libcamera's controls for what is configured."""
    wanted = {control: value for _, control, value in wishes(settings, hdr_is_set)}
    if settings.autofocus == "auto":
        wanted["AfTrigger"] = AF_TRIGGER_START  # it focuses only when it is told to: once, now
    if settings.hdr is False and not hdr_is_set and "HdrMode" in limits:
        wanted["HdrMode"] = HDR_OFF
    if frame_us := frame_time(settings, limits):
        wanted["FrameDurationLimits"] = (frame_us, frame_us)
    return wanted


def frame_time(settings: Settings, limits: Mapping[str, Any]) -> int:
    """Microseconds from frame to frame: as configured, or as long as the camera can; 0 when it has no such control."""
    most_us = int(limits.get("FrameDurationLimits", (0, 0))[1])
    return min(round(1e6 / settings.fps), most_us)
