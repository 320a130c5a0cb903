"""Bytes of picture files that are small and want much, or say absurd things: what hostile.py puts into its folder."""

from __future__ import annotations

import struct

_ALL_BLOCKS = 0x7FFF
"""The longest run of blocks that a progressive JPEG can say nothing of at once (ITU-T T.81, G.1.2.2)."""


def jpeg_of_scans(width_px: int, height_px: int, scans: int) -> bytes:
    """A grey progressive JPEG; each of its scans is a few bytes, and a walk through the whole picture for a decoder."""
    blocks = -(-width_px // 8) * -(-height_px // 8)
    bits = ("0" + "1" * 14) * -(-blocks // _ALL_BLOCKS)  # code 0 is EOB14, followed by 14 bits
    bits += "1" * (-len(bits) % 8)
    nothing = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = _segment(0xDB, b"\0" + b"\1" * 64) + _segment(
        0xC2, struct.pack(">BHHB", 8, height_px, width_px, 1) + b"\1\x11\0"
    )
    tables += _segment(0xC4, b"\0\1" + bytes(15) + b"\0") + _segment(0xC4, b"\x10\1\1" + bytes(14) + b"\xe0\0")
    first = _segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    return b"\xff\xd8" + tables + first + (_segment(0xDA, b"\1\1\0\1\x3f\0") + nothing) * scans + b"\xff\xd9"


def gif(width_px: int, height_px: int, frame: tuple[int, int, int, int], data: bytes) -> bytes:
    """A GIF with two colours and one frame (left, top, width, height), whose data are as given."""
    screen = b"GIF89a" + struct.pack("<HH", width_px, height_px) + b"\xf0\0\0" + bytes(6)
    return screen + b"," + struct.pack("<HHHH", *frame) + b"\0\2" + data + b";"


def with_comments(data: bytes, count: int) -> bytes:
    """A GIF with so many comments before its frame."""
    start = 13 + 3 * (2 << (data[10] & 7))
    return data[:start] + b"!\xfe\1a\0" * count + data[start:]


def bmp_in_runs(width_px: int, height_px: int, data: bytes) -> bytes:
    """A BMP of 256 colours, run-length encoded."""
    header = struct.pack("<IiiHHIIiiII", 40, width_px, height_px, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(data), 0, 0, 14 + 40 + 1024) + header + bytes(1024) + data


def tiff(
    tags: dict[int, int], data: bytes | None = None, counts: dict[int, int] | None = None, next_directory: int = 0
) -> bytes:
    """A grey TIFF of 64×64 pixels in one strip, with other values for some tags."""
    data = bytes(range(256)) * 16 if data is None else data
    values = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 64, 279: len(data)} | tags
    entries = (struct.pack("<HHII", tag, 4, (counts or {}).get(tag, 1), values[tag]) for tag in sorted(values))
    directory = struct.pack("<H", len(values)) + b"".join(entries) + struct.pack("<I", next_directory)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + data


def exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A JPEG segment with one EXIF tag."""
    entry = struct.pack("<HHHI", 1, tag, kind, count) + value
    return _segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4))


def billion_laughs() -> bytes:
    """A JPEG segment with XMP whose entities become a thousand million words where somebody expands them."""
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    text = f"<!DOCTYPE a [<!ENTITY a0 'ha'>{entities}]><x:xmpmeta>&a9;</x:xmpmeta>"
    return _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text.encode())


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data
