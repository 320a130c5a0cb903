"""USB cameras and other video devices of the kernel (V4L2)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer

from edge_daemon.choices import CameraFormat
from edge_daemon.sources.opening import in_words, number_of

_DEMUXER = "v4l2"


@dataclass(frozen=True)
class V4l2Options:
    """Which device, and what is asked of it."""

    device: str
    width_px: int
    height_px: int
    fps: float | None
    format: CameraFormat
    open_timeout_s: float
    read_timeout_s: float
    max_side_px: int


class Device:
    """One video device."""

    def __init__(self, options: V4l2Options, demuxer: str | None = _DEMUXER) -> None:
        """Nothing is opened yet. `demuxer`: what of FFmpeg reads it; None for a file in its place."""
        self.open_timeout_s = options.open_timeout_s
        self.read_timeout_s = options.read_timeout_s
        self._options = options
        self._demuxer = demuxer

    def open(self) -> InputContainer:
        """Open it. Raises av.FFmpegError, or OSError."""
        wishes = {"video_size": f"{self._options.width_px}x{self._options.height_px}"}
        if self._options.fps is not None:
            wishes["framerate"] = f"{self._options.fps:g}"
        if self._options.format != "auto":
            wishes["input_format"] = self._options.format
        timeouts_s = (self.open_timeout_s, self.read_timeout_s)
        return av.open(self._options.device, format=self._demuxer, options=wishes, timeout=timeouts_s)

    def keep_pace(self, due_s: float) -> None:
        """A device has a pace."""

    def silent(self, what: str, after_s: float) -> str:
        """The words for a deadline that passed."""
        if what == "read":
            return f"no picture came from {self._options.device} for {after_s:g} s (read_timeout_s)"
        return f"{self._options.device} could not be opened within {after_s:g} s (open_timeout_s)"

    def why(self, error: Exception | None) -> str:
        """Why it cannot be opened or read."""
        device = self._options.device
        number = "" if error is None else number_of(error)
        if error is None or number == "ENODEV":
            return f"the camera {device} has gone: was it unplugged?"
        match number:
            case "ENOENT":
                return f"there is no {device}: is the camera plugged in?{_others(device)}"
            case "EACCES" | "EPERM":
                return f"user id {os.geteuid()} may not read {device}: it must be in its group{_group(device)}"
            case "EBUSY":
                return f"{device} is in use{owner_of(device)}: only one program at a time can read a camera"
            case "ENOTTY":
                return f"{device} is not a video device"
            case "EINVAL":
                return f"{device} cannot do {self._asked}: check width_px, height_px, fps and format"
        return f"{device}: {in_words(error)}"

    @property
    def _asked(self) -> str:
        options = self._options
        fps = "" if options.fps is None else f", {options.fps:g} pictures a second"
        return f"{options.width_px}×{options.height_px}{fps}, format {options.format}"


def owner_of(device: str) -> str:
    """Who has it open, as the end of a sentence; empty when that cannot be seen: other users' processes are closed."""
    try:
        wanted = os.stat(device)
    except OSError:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            links = [os.stat(link) for link in (process / "fd").iterdir()]
            if any(os.path.samestat(link, wanted) for link in links):
                return f" by {(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return " by another program (only root can see by which)" if os.geteuid() else ""


def _group(device: str) -> str:
    """The group of a device by name, in brackets."""
    import grp

    try:
        return f" ({grp.getgrgid(os.stat(device).st_gid).gr_name})"
    except (OSError, KeyError):
        return " (video)"


def _others(device: str) -> str:
    """Which video devices there are instead."""
    there = sorted(str(path) for path in Path("/dev").glob("video*") if str(path) != device)
    return f" There is {', '.join(there)}" if there else ""
