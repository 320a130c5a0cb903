"""What cameras are attached to this machine: asks the kernel (V4L2) and, on the system's Python, libcamera.

Nothing is opened for pictures, so that a camera that is in use is listed as well. It knows nothing of the
configuration but its words.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

QUERYCAP, ENUM_FMT, ENUM_FRAMESIZES = 0x80685600, 0xC0405602, 0xC02C564A
"""Requests, capabilities and layouts: linux/videodev2.h; a test compares them with the compiler's."""
CAPABILITY, FORMAT, FRAME_SIZE = "16s32s32sIII12x", "III32s4s16x", "I4sI6I8x"
VIDEO_CAPTURE, DEVICE_CAPS = 0x1, 0x80000000
DISCRETE = 1
LIBCAMERA_S = 30.0
"""A Raspberry Pi Zero takes several seconds to load picamera2."""
BOARD_DRIVERS = frozenset({"unicam", "rp1-cfe", "bcm2835-isp", "bcm2835-codec", "pispbe", "rpi-hevc-dec", "rpivid"})
"""Parts of a Raspberry Pi's camera connector and codecs: libcamera's, and of no use without it."""
MAX_ENTRIES = 256
"""Of a list that a driver gives; one that is broken may go on for ever."""


@dataclass(frozen=True)
class PictureFormat:
    """A format of a camera, and its sizes."""

    code: str
    """Four characters, such as MJPG."""
    description: str
    sizes_px: tuple[tuple[int, int], ...]
    """Width and height; the least and the most of a camera that takes whatever lies between."""
    stepwise: bool


@dataclass(frozen=True)
class VideoDevice:
    """A camera that the kernel has."""

    device: str
    """A path that stays the same when cameras are plugged in in another order, where there is one."""
    name: str
    driver: str
    formats: tuple[PictureFormat, ...]

    @property
    def place(self) -> str:
        """Where it is."""
        return self.device

    def yaml(self, source: str) -> str:
        """Its source of this name, to paste: with the size that is closest to what the model sees."""
        width_px, height_px = min(
            (size for kind in self.formats for size in kind.sizes_px),
            key=lambda size: abs(size[0] * size[1] - 640 * 480),
            default=(640, 480),
        )
        return (
            f"  {source}:\n    type: v4l2\n    device: {self.device}\n"
            f"    width_px: {width_px}\n    height_px: {height_px}\n"
        )


@dataclass(frozen=True)
class ConnectorCamera:
    """A camera that libcamera has."""

    number: int
    name: str
    """Of its sensor."""
    id: str
    formats: ClassVar[tuple[PictureFormat, ...]] = ()
    """Whatever it is asked for."""

    @property
    def place(self) -> str:
        """Where it is."""
        return f"camera {self.number} on the connector"

    def yaml(self, source: str) -> str:
        """Its source of this name, to paste."""
        return f"  {source}:\n    type: picamera\n    camera: {self.number}\n"


def video_devices(folder: Path = Path("/dev")) -> tuple[list[VideoDevice], list[str]]:
    """The video devices that deliver pictures, and why others could not be asked."""
    found, problems = [], []
    stable = {link.resolve(): str(link) for link in sorted(folder.glob("v4l/by-id/*"))}
    for path in sorted(folder.glob("video*"), key=lambda path: (len(path.name), path.name)):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        try:
            device = _ask(descriptor, stable.get(path.resolve(), str(path)))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        else:
            found += [] if device is None else [device]
        finally:
            os.close(descriptor)
    return found, problems


def connector_cameras(argv: Sequence[str], deadline_s: float = LIBCAMERA_S) -> tuple[list[ConnectorCamera], str]:
    """The cameras that libcamera finds, and why it cannot be asked. `argv`: what asks it, see sources/picamera.py."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=deadline_s, check=True, stdin=subprocess.DEVNULL)
        said: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return [], f"libcamera did not answer within {deadline_s:g} s"
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return [], f"querying libcamera failed with exit code {error.returncode}: {last}"
    except (OSError, ValueError) as error:
        return [], f"libcamera cannot be queried: {error}"
    cameras = [
        ConnectorCamera(number, str(info.get("Model", "camera")), str(info.get("Id", "")))
        for number, info in enumerate(said["cameras"])
    ]
    return [camera for camera in cameras if "/usb" not in camera.id], said["problem"]  # those are v4l2's


def named(cameras: Sequence[VideoDevice | ConnectorCamera]) -> dict[str, VideoDevice | ConnectorCamera]:
    """Cameras by names for their sources, each another one."""
    found: dict[str, VideoDevice | ConnectorCamera] = {}
    for camera in cameras:
        word = re.sub(r"[^a-z0-9]+", "-", camera.name.lower())[:40].strip("-") or "camera"
        numbered = (f"{word}-{number}" for number in count(2))
        found[next(name for name in chain([word], numbered) if name not in found)] = camera
    return found


def _ask(descriptor: int, device: str) -> VideoDevice | None:
    """What kind of device this is; None when it is no camera of its own. Raises OSError."""
    driver, card, _, _, everything, own = _query(descriptor, QUERYCAP, CAPABILITY, b"")
    capabilities = own if everything & DEVICE_CAPS else everything
    if not capabilities & VIDEO_CAPTURE or _text(driver) in BOARD_DRIVERS:
        return None
    formats = tuple(
        PictureFormat(code.decode("ascii", "replace"), _text(description), *_sizes(descriptor, code))
        for _, _, _, description, code in _entries(descriptor, ENUM_FMT, FORMAT, struct.pack("I", VIDEO_CAPTURE))
    )
    return VideoDevice(device, _text(card), _text(driver), formats)


def _sizes(descriptor: int, code: bytes) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The sizes of a format, and whether those between them are possible as well."""
    sizes = []
    for _, _, kind, *numbers in _entries(descriptor, ENUM_FRAMESIZES, FRAME_SIZE, code):
        if kind != DISCRETE:
            least_width_px, most_width_px, _, least_height_px, most_height_px, _ = numbers
            return ((least_width_px, least_height_px), (most_width_px, most_height_px)), True
        sizes.append((numbers[0], numbers[1]))
    return tuple(sizes), False


def _entries(descriptor: int, request: int, layout: str, which: bytes) -> Iterator[tuple[Any, ...]]:
    """A list that the driver gives entry by entry, until it says EINVAL."""
    for index in range(MAX_ENTRIES):
        try:
            yield _query(descriptor, request, layout, struct.pack("I", index) + which)
        except OSError:
            return


def _query(descriptor: int, request: int, layout: str, question: bytes) -> tuple[Any, ...]:
    answer = bytearray(question.ljust(struct.calcsize(layout), b"\0"))
    import fcntl  # late: Windows has none, and no video devices of this kind

    fcntl.ioctl(descriptor, request, answer)
    return struct.unpack(layout, answer)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
