"""What a picture file really is, whether it may be decoded, and what becomes of it: 512 px of RGB and a thumbnail.

The content decides, never the name: `kind_of` looks at the first bytes, and only a kind that is on the list
reaches a decoder (decoders.py), told to read that kind and no other. A file is read into memory as a whole
before anything looks at it, so that nothing can change, shrink or vanish under a decoder.
It knows neither which folder a file lies in nor what the picture is for.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Protocol

from edge_daemon.errors import PictureError
from edge_daemon.picture_limits import MAX_FILE_MIB, MAX_PIXELS, MAX_SIDE_PX
from edge_daemon.rlimits import data_limit_bytes
from edge_daemon.sources.jpeg_stream import has_end
from edge_daemon.units import MIB

KINDS = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF", "tiff": "TIFF", "bmp": "BMP"} | {
    "avif": "AVIF",
    "heic": "HEIC",
}
"""What we read, and how it is called in a sentence."""

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
)
_BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"
)
"""Major brands of the ISO media files that hold one picture (ISO/IEC 23008-12, annex B; AV1 image format §6)."""

_STRANGERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x7fELF", "a program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture, which is not supported"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture, which is not supported"),
    (b"\xff\x0a", "a JPEG XL picture, which is not supported"),
)


@dataclass(frozen=True)
class Limits:
    """How large a picture may be, and how large it comes out."""

    max_side_px: int = MAX_SIDE_PX
    """Longer side of the result; smaller pictures keep their size."""
    max_pixels: int = MAX_PIXELS
    """Width times height that the header may claim."""
    max_file_bytes: int = MAX_FILE_MIB * MIB


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright, sRGB, 8 bits, on white where it was transparent."""

    width_px: int
    height_px: int
    original_width_px: int
    """Upright, like all sizes here: a portrait stays a portrait."""
    original_height_px: int
    pixels: bytes = field(repr=False)
    """RGB, row by row: height_px × width_px × 3."""
    thumbnail: bytes = field(repr=False)
    """Grey, row by row: THUMBNAIL_PX × THUMBNAIL_PX, the picture squeezed to a square."""


class Decoder(Protocol):
    """What turns bytes of a known kind into a picture."""

    @property
    def name(self) -> str:
        """Library and version, for people."""

    def decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        """Decode the first frame. Raises PictureError, or MemoryError when a memory limit was hit."""


def load(path: str, decoder: Decoder, limits: Limits) -> Picture:
    """Read and decode one picture file. Raises PictureError with the reason in plain words."""
    return decode(read_file(path, limits), decoder, limits)


def decode(data: bytes, decoder: Decoder, limits: Limits) -> Picture:
    """Decode the bytes of a picture file. Raises PictureError with the reason in plain words."""
    kind = kind_of(data)
    try:
        # a decoder would take the zeros for pixels
        if kind == "jpeg" and data.endswith(b"\0") and not has_end(data):
            raise damaged(kind, "zeros stand in place of its end, as after a power cut or an unfinished copy")
        return decoder.decode(data, kind, limits)
    except MemoryError as error:
        raise PictureError(
            f"decoding this {KINDS[kind]} needs more memory than the {_memory_limit()} it may have "
            "(decode_memory_mib); a smaller picture, or one that is not progressive or interlaced, needs less"
        ) from error


def read_file(path: str, limits: Limits) -> bytes:
    """All bytes of a regular file, through symbolic links. Raises PictureError with the reason in plain words."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise PictureError(_not_a_file(path, info.st_mode))
        if info.st_size > limits.max_file_bytes:
            raise PictureError(
                f"the file has {info.st_size / 1e6:.1f} MB; at most {limits.max_file_bytes / 1e6:.1f} MB are read "
                "(max_file_mib)"
            )
        # O_NONBLOCK: should a pipe have taken the file's place since, opening it must not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            return file.read(info.st_size)
    except MemoryError as error:
        raise PictureError(f"the file does not fit into the {_memory_limit()} of decode_memory_mib") from error
    except OSError as error:
        raise PictureError(_why_unreadable(path, error)) from error


def kind_of(data: bytes) -> str:
    """Which of KINDS the bytes are, by their first bytes. Raises PictureError naming what they are instead."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return _BRANDS[data[8:12]]
    raise PictureError(f"not a picture: {_describe(data)}")


def check_pixels(width_px: int, height_px: int, limits: Limits) -> None:
    """Refuse what the header claims before a pixel is decoded. Raises PictureError."""
    if width_px < 1 or height_px < 1:
        raise PictureError(f"the header says {width_px}×{height_px} pixels")
    if width_px * height_px > limits.max_pixels:
        raise PictureError(
            f"the header says {width_px}×{height_px} = {width_px * height_px / 1e6:.1f} million pixels; at most "
            f"{limits.max_pixels / 1e6:.1f} million are decoded (max_pixels)"
        )


def fit(width_px: int, height_px: int, max_side_px: int) -> tuple[int, int]:
    """The size that has the same shape and at most `max_side_px` on the longer side; never larger than it was."""
    scale = min(1.0, max_side_px / max(width_px, height_px))
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def damaged(kind: str, detail: str) -> PictureError:
    """The error for a picture that began well: `detail` is what the library said."""
    text = " ".join(detail.split())[:200]
    return PictureError(f"damaged or incomplete {KINDS[kind]}" + (f": {text}" if text else ""))


def _memory_limit() -> str:
    limit_bytes = data_limit_bytes()
    return "memory" if limit_bytes is None else f"{limit_bytes / 1e6:.0f} MB"


def _describe(data: bytes) -> str:
    """What bytes that are none of KINDS seem to be."""
    if not data:
        return "the file is empty"
    if not data.strip(b"\0"):
        return f"all {len(data)} bytes are zero, as after a power cut or an unfinished copy"
    for magic, what in _STRANGERS:
        if data.startswith(magic):
            return f"it is {what}"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page (HTML), perhaps the error page of a failed download"
    if b"<svg" in start:
        return "it is an SVG drawing, which is not supported"
    if data[4:8] == b"ftyp":
        return f"it is a film or another ISO media file (brand {data[8:12]!r})"
    if all(byte in b"\t\r\n\f" or 32 <= byte < 127 for byte in data[:512]):
        return "it is text"  # none of it is told: a link may lead to a password, and everybody reads what we publish
    return f"it begins with the bytes {data[:8].hex(' ')}, which no supported format does"


def _not_a_file(path: str, mode: int) -> str:
    """What it is instead. Raises OSError for a folder that breaks off while it is listed."""
    if stat.S_ISDIR(mode):
        if os.path.islink(path):
            return "a symbolic link to a folder; folders are not followed through links"
        if not os.access(path, os.R_OK | os.X_OK):
            return f"a folder that this service may not look into (permissions {stat.filemode(mode)})"
        with os.scandir(path) as listing:
            for _ in listing:  # raises what keeps it from being listed
                pass
        return "a folder, not a picture, in spite of its name; pictures inside it are read"
    if stat.S_ISFIFO(mode):
        return "a named pipe, not a file"
    return "a socket, not a file" if stat.S_ISSOCK(mode) else "a device, not a file"


def _why_unreadable(path: str, error: OSError) -> str:
    """Why a file cannot be opened or read, and what would help."""
    if error.errno == errno.ENOENT:
        if os.path.islink(path):
            return f"a symbolic link to {os.readlink(path)!r}, which does not exist"
        return "it does not exist (any more): perhaps it was deleted, moved or renamed"
    if error.errno == errno.ELOOP:
        return "a symbolic link that leads back to itself"
    if error.errno == errno.EACCES:
        return f"this service (user id {os.geteuid()}) may not read it: its permissions or its folder's forbid it"
    return f"it cannot be read: {error.strerror}"
