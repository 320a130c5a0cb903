"""Makes the files that a watched folder must survive: broken, lying, odd, and not files at all; and good odd ones.

Every file is made here, from bytes and with Pillow; nothing is kept in the repository. Good pictures show SCENE, so
that a test sees whether they came out upright, in the right colours, and the right frame of them.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms

from tests import bombs

SCENE = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255))
"""Colours of the quarters: top left, top right, bottom left, bottom right."""
WIDTH_PX, HEIGHT_PX = 600, 400


@dataclass(frozen=True)
class Hostile:
    """One file and what must become of it."""

    name: str
    reason: str = ""
    """What the Problem must say (a regular expression); empty for a picture that must be read."""
    colours: str = "scene"
    """What a good picture shows: `scene`, `grey` (the scene without colours) or `any`."""
    size: tuple[int, int] = (512, 341)
    """Width and height of the frame."""


def make(folder: Path) -> list[Hostile]:
    """Put all of them into an empty folder. Returns one entry for each, in no order."""
    cases = _strangers(folder) + _truncated(folder) + _liars(folder) + _damaged(folder) + _bombs(folder)
    return cases + _good(folder) + _metadata(folder) + _names(folder) + _not_files(folder)


def scene(width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> Image.Image:
    """A picture of SCENE."""
    small = Image.new("RGB", (2, 2))
    small.putdata(SCENE)
    return small.resize((width_px, height_px), Image.Resampling.NEAREST)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width_px: int, height_px: int) -> Image.Image:
    """A picture that does not compress, the same every time."""
    state = bytearray()
    value = 1
    for _ in range(4096):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
        state.append(value >> 16 & 0xFF)
    size = width_px * height_px * 3
    return Image.frombytes("RGB", (width_px, height_px), (bytes(state) * (size // 4096 + 1))[:size])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width_px: int, height_px: int, bits: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its header's values and its rows (a filter byte before each)."""
    header = struct.pack(">IIBBBBB", width_px, height_px, bits, colour_type, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows, 9)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_claiming(width_px: int, height_px: int) -> bytes:
    """A JPEG of 64×64 pixels whose header says something else."""
    data = bytearray(encode(scene(64, 64), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height_px, width_px)
    return bytes(data)


def heic() -> bytes:
    """A HEIC whose header is right (ISO/IEC 23008-12), with one HEVC picture of 64×64 pixels that is not there."""
    sps = bytes(20)  # profile, tier, level and so on of HEVCDecoderConfigurationRecord, ISO/IEC 14496-15
    codec = _box(b"hvcC", b"\x01" + sps + b"\xfc\x00")
    extent = _box(b"ispe", struct.pack(">III", 0, 64, 64))
    depths = _box(b"pixi", b"\0\0\0\0\x03\x08\x08\x08")
    use = _box(b"ipma", struct.pack(">IIHB", 0, 1, 1, 3) + b"\x81\x02\x03")
    entry = _box(b"infe", struct.pack(">IHH", 2 << 24, 1, 0) + b"hvc1\0")
    head = _box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(offset: int) -> bytes:
        return _box(
            b"meta",
            bytes(4)
            + _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
            + _box(b"pitm", struct.pack(">IH", 0, 1))
            + _box(b"iloc", struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, offset, 64))
            + _box(b"iinf", struct.pack(">IH", 0, 1) + entry)
            + _box(b"iprp", _box(b"ipco", codec + extent + depths) + use),
        )

    return head + meta(len(head) + len(meta(0)) + 8) + _box(b"mdat", bytes(64))


def _box(kind: bytes, data: bytes) -> bytes:
    """A box of an ISO media file."""
    return struct.pack(">I", len(data) + 8) + kind + data


def _write(folder: Path, files: dict[str, tuple[bytes, str]]) -> list[Hostile]:
    """Files with their reasons."""
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Hostile(name, reason) for name, (_, reason) in files.items()]


def _strangers(folder: Path) -> list[Hostile]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("picture.jpg", encode(scene(), "JPEG"))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    film = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(500)
    return _write(
        folder,
        {
            "empty.jpg": (b"", "the file is empty"),
            "one-byte.jpg": (b"\xff", "begins with the bytes ff"),
            "zeros.jpg": (bytes(4096), "all 4096 bytes are zero"),
            "text.jpg": (b"no picture, only words\n", "it is text"),
            "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
            "program.jpg": (b"\x7fELF\2\1\1" + bytes(200), "a program"),
            "archive.jpg": (archive.getvalue(), "a ZIP archive"),
            "drawing.png": (svg, "an SVG drawing"),
            "drawing-xml.png": (b'<?xml version="1.0"?>\n' + svg, "an SVG drawing"),
            "document.png": (b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n", "a PDF document"),
            "film.heic": (film, "a film"),
            "random.webp": (noise(20, 20).tobytes(), "begins with the bytes"),
            "riff-wave.webp": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "begins with the bytes 52 49 46 46"),
            "portable.png": (b"P6 2 2 255\n" + b"\xff\x80\1" * 4, "begins with the bytes"),
            "vips-own.tif": (b"\xb6\xa6\xf2\x08" + bytes(60), "begins with the bytes"),
            "codec.heic": (heic(), "cannot decode HEIC|HEIC pictures need libvips"),
        },
    )


def _truncated(folder: Path) -> list[Hostile]:
    picture = noise(WIDTH_PX, HEIGHT_PX)
    whole = {
        "jpg": encode(picture, "JPEG"),
        "jpeg": encode(picture, "JPEG", progressive=True),
        "png": encode(picture, "PNG"),
        "webp": encode(picture, "WEBP"),
        "gif": encode(picture, "GIF"),
        "tif": encode(picture, "TIFF"),
        "tiff": encode(picture, "TIFF", compression="tiff_lzw"),
        "bmp": encode(picture, "BMP"),
        "avif": encode(picture, "AVIF"),
    }
    files = {
        f"truncated-{percent}.{suffix}": (data[: len(data) * percent // 100], "damaged or incomplete")
        for suffix, data in whole.items()
        for percent in (50, 95)
    }
    starts = {"jpg": 3, "png": 20, "webp": 14, "gif": 8, "tif": 6, "bmp": 16}
    files |= {f"beginning.{suffix}": (whole[suffix][:n], "damaged or incomplete") for suffix, n in starts.items()}
    files["no-end.jpg"] = (whole["jpg"][:-2], "damaged or incomplete JPEG")
    for suffix in ("jpg", "jpeg"):  # its place was set aside, and is filled with zeros until the rest comes
        half = len(whole[suffix]) // 2
        zeros = (whole[suffix][:half] + bytes(half), "damaged or incomplete JPEG: zeros stand in place of its end")
        files[f"half-written.{suffix}"] = zeros
    return _write(folder, files)


def _liars(folder: Path) -> list[Hostile]:
    tiff = bytearray(encode(Image.new("L", (64, 64)), "TIFF"))
    directory = struct.unpack_from("<I", tiff, 4)[0]
    for tag in range(struct.unpack_from("<H", tiff, directory)[0]):
        at = directory + 2 + 12 * tag
        if struct.unpack_from("<H", tiff, at)[0] in (256, 257):  # ImageWidth, ImageLength
            struct.pack_into("<HHII", tiff, at, struct.unpack_from("<H", tiff, at)[0], 4, 1, 60_000)
    bmp = bytearray(encode(scene(64, 64), "BMP"))
    struct.pack_into("<ii", bmp, 18, 40_000, 40_000)
    bmp_cut = bytearray(encode(scene(64, 64), "BMP"))
    struct.pack_into("<ii", bmp_cut, 18, 9_000, 9_000)
    gif = bytearray(encode(scene(64, 64), "GIF"))
    struct.pack_into("<HH", gif, 6, 65_535, 65_535)
    webp = b"VP8X" + struct.pack("<II", 10, 0) + (16_383).to_bytes(3, "little") * 2 + b"VP8 " + struct.pack("<I", 0)
    bomb = png(20_000, 20_000, 1, 0, (b"\0" + bytes(2_500)) * 20_000)
    return _write(
        folder,
        {
            "40000x40000.png": (png(40_000, 40_000, 8, 2, b"\0"), r"40000×40000 = 1600\.0 million pixels"),
            "bomb.png": (bomb, r"20000×20000 = 400\.0 million pixels; at most 100\.0 million"),
            "no-width.png": (png(0, 10, 8, 2, b"\0"), "damaged|0×10 pixels"),
            "few-rows.png": (png(9_000, 9_000, 8, 2, b"\0" * 9_000), "damaged or incomplete PNG"),
            "65500x65500.jpg": (jpeg_claiming(65_500, 65_500), r"65500×65500 = 4290\.2 million"),
            "9000x9000.jpg": (jpeg_claiming(9_000, 9_000), "damaged or incomplete JPEG"),
            "60000x60000.tif": (bytes(tiff), r"60000×60000 = 3600\.0 million"),
            "40000x40000.bmp": (bytes(bmp), r"40000×40000 = 1600\.0 million"),
            "9000x9000.bmp": (bytes(bmp_cut), "damaged or incomplete BMP"),
            "65535x65535.gif": (bytes(gif), r"65535×65535 = 4294\.8 million"),
            "16384x16384.webp": (
                b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
                r"16384×16384 = 268\.4 million|damaged",
            ),
        },
    )


def _damaged(folder: Path) -> list[Hostile]:
    picture = noise(WIDTH_PX, HEIGHT_PX)
    plain = encode(picture, "PNG")
    pixels = plain.index(b"IDAT")
    checksum = pixels + 4 + struct.unpack_from(">I", plain, pixels - 4)[0]
    lzw, webp = encode(picture, "TIFF", compression="tiff_lzw"), encode(picture, "WEBP")
    gif = encode(picture, "GIF")
    return _write(
        folder,
        {
            "header-checksum.png": (_flip(plain, 29, 1), "damaged or incomplete PNG"),
            "pixel-checksum.png": (_flip(plain, checksum, 1), "damaged or incomplete PNG"),
            "flipped.png": (_flip(plain, len(plain) // 2, 50), "damaged or incomplete PNG"),
            "flipped.tif": (_flip(lzw, 2_000, 200), "damaged or incomplete TIFF"),
            "flipped.webp": (_flip(webp, 20, 10), "damaged or incomplete WebP"),
            "flipped.gif": (_flip(gif, len(gif) // 2, 200), "damaged or incomplete GIF"),
            "floats.tif": (encode(Image.new("F", (40, 30), 0.5), "TIFF"), "8 and 16 bits are supported"),
        },
    )


def _flip(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(byte ^ 0xFF for byte in data[start : start + count]) + data[start + count :]


def _bombs(folder: Path) -> list[Hostile]:
    """Small files that claim, or become, something large."""
    pixels, rows = 100 << 20, (b"\0" + bytes(192)) * 64
    inflated = zlib.compress(bytes(pixels), 9)
    jpeg, gif = encode(scene(), "JPEG", quality=95), encode(scene(), "GIF")
    refused = {
        "big-frame.gif": (bombs.gif(10, 10, (0, 0, 65_535, 65_535), b"\1\x44\0"), r"65535×65535 = 4294\.8 million"),
        "far-frame.gif": (bombs.gif(10, 10, (60_000, 60_000, 10, 10), b"\1\x44\0"), r"60010×60010 = 3601\.2 million"),
        "no-frame.gif": (bombs.gif(9_000, 9_000, (0, 0, 9_000, 9_000), b"\0"), "damaged or incomplete GIF"),
        "few-runs.bmp": (bombs.bmp_in_runs(9_000, 9_000, b"\1\5" * 100_000), "damaged or incomplete BMP"),
        "upside-down.bmp": (bombs.bmp_in_runs(64, -(1 << 31), b"\0\1"), "million pixels"),
        "huge-tiles.tif": (bombs.tiff({322: 0x7FFFFFF0, 323: 0x7FFFFFF0, 324: 200, 325: 4096}), "damaged|no picture"),
        "huge-count.tif": (bombs.tiff({}, counts={273: 0xFFFFFFFF, 279: 0xFFFFFFFF}), "damaged or incomplete TIFF"),
        "no-height.jpg": (jpeg_claiming(600, 0), "damaged or incomplete JPEG|600×0 pixels"),
        "twelve-bits.jpg": (jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "damaged or incomplete JPEG"),
        "whole-numbers.tif": (encode(Image.new("I", (40, 30)), "TIFF"), "8 and 16 bits are supported"),
    }
    good = {
        "profile-bomb.png": (png(64, 64, 8, 2, rows, png_chunk(b"iCCP", b"x\0\0" + inflated)), (64, 64)),
        "text-bomb.png": (png(64, 64, 8, 2, rows, png_chunk(b"zTXt", b"x\0\0" + inflated)), (64, 64)),
        "chunks.png": (png(64, 64, 8, 2, rows, *[png_chunk(b"teSt", b"")] * 20_000), (64, 64)),
        "more-than-said.png": (png(64, 64, 8, 2, rows + bytes(pixels)), (64, 64)),
        "flat.png": (png(10_000, 10_000, 1, 0, (b"\0" + bytes(1_250)) * 10_000), (512, 512)),
        "inflated.tif": (bombs.tiff({256: 9_900, 257: 9_900, 259: 8, 278: 9_900}, inflated), (512, 512)),
        "loop.tif": (bombs.tiff({}, next_directory=8), (64, 64)),
        "many-scans.jpg": (bombs.jpeg_of_scans(400, 400, 200), (400, 400)),
        "comments.jpg": (jpeg[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg[2:], (512, 341)),
        "filled.jpg": (jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:], (512, 341)),
        "comments.gif": (bombs.with_comments(gif, 20_000), (512, 341)),
        "wide.jpg": (encode(Image.new("RGB", (65_500, 1)), "JPEG"), (512, 1)),
        "tall.png": (png(1, 1_000_000, 1, 0, bytes(2_000_000)), (1, 512)),
    }
    for name, (data, _) in good.items():
        (folder / name).write_bytes(data)
    cases = [Hostile(name, colours="any", size=size) for name, (_, size) in good.items()]
    return _write(folder, refused) + cases


def _metadata(folder: Path) -> list[Hostile]:
    """Good pictures with absurd things written beside the pixels; and such that are something else as well."""
    jpeg, gif, other = encode(scene(), "JPEG", quality=95), encode(scene(), "GIF"), Image.new("RGB", (600, 400))
    markers = {
        "tag-nan.jpg": bombs.exif(0x0112, 11, 1, b"\0\0\xc0\x7f"),
        "tag-text.jpg": bombs.exif(0x0112, 2, 4, b"six\0"),
        "tag-negative.jpg": bombs.exif(0x0112, 8, 1, b"\xff\xff\0\0"),
        "tag-endless.jpg": bombs.exif(0x0112, 2, 0xFFFFFFFF, b"\x08\0\0\0"),
        "tag-loop.jpg": bombs.exif(0x8769, 4, 1, b"\x08\0\0\0"),
        "tag-date.jpg": bombs.exif(0x9003, 2, 4, b"9999"),
        "laughs.jpg": bombs.billion_laughs(),
    }
    files = {name: jpeg[:2] + marker + jpeg[2:] for name, marker in markers.items()}
    for orientation in (0, 9, 99, 65_535):
        files[f"orientation-{orientation}.jpg"] = turned(scene(), orientation)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = {
        "length": b"\xff\xff\xff\xff" + profile[4:],
        "tags": profile[:128] + b"\xff\xff\xff\xff" + profile[132:],
        "cut": profile[:200],
        "grey": profile[:16] + b"GRAY" + profile[20:],
        "inks": profile[:16] + b"CMYK" + profile[20:],
        "large": profile + bytes(10 << 20),
    }
    files |= {f"profile-{name}.jpg": encode(scene(), "JPEG", quality=95, icc_profile=p) for name, p in profiles.items()}
    files |= {
        "both.gif": gif + b"PK\3\4" + bytes(100),
        "both.jpg": jpeg + b"PK\3\4" + bytes(3000) + b"PK\5\6" + bytes(18),
        "page.jpg.jpg": jpeg[:2] + b"\xff\xfe\0\x28" + b"<html><script>alert(1)</script>".ljust(38) + jpeg[2:],
        "animation.png": encode(scene(), "PNG", save_all=True, append_images=[other]),
        "animation.avif": encode(scene(), "AVIF", quality=95, save_all=True, append_images=[other]),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    broken = {
        "document-and.jpg": (b"%PDF-1.4\n" + jpeg, "a PDF document"),
        "script.gif": (b"GIF89a/*" + bytes(50) + b"*/=1;<script>", "damaged or incomplete GIF"),
    }
    return [Hostile(name) for name in files] + _write(folder, broken) + _broken_profiles(folder, profile)


def _broken_profiles(folder: Path, profile: bytes) -> list[Hostile]:
    """Profiles that can be read and make no sense: the colours may be wrong, the picture is one."""
    cases = []
    for number in range(8):
        damaged = bytearray(profile)
        for step in range(12):
            damaged[128 + (number * 7919 + step * 104729) % (len(damaged) - 128)] = (number * 31 + step * 17) % 256
        data = encode(scene(), "JPEG", quality=95, icc_profile=bytes(damaged))
        cases.append(Hostile(f"profile-broken-{number}.jpg", colours="any"))
        (folder / cases[-1].name).write_bytes(data)
    return cases


def _good(folder: Path) -> list[Hostile]:
    """Pictures that are odd, and right."""
    picture = scene()
    other = Image.new("RGB", picture.size, (128, 0, 128))
    alpha = picture.convert("RGBA")
    hole = Image.new("RGBA", (WIDTH_PX // 2, HEIGHT_PX // 2), (0, 0, 0, 0))
    alpha.paste(hole, (WIDTH_PX // 2, HEIGHT_PX // 2))  # a transparent corner: white, like the scene's
    whole = encode(picture, "JPEG", quality=95)
    colours = {
        "animated.gif": encode(picture, "GIF", save_all=True, append_images=[other, other], duration=100),
        "animated.webp": encode(picture, "WEBP", save_all=True, append_images=[other], lossless=True),
        "pages.tif": encode(picture, "TIFF", save_all=True, append_images=[other]),
        "inks.jpg": encode(picture.convert("CMYK"), "JPEG", quality=95),
        "palette.png": encode(picture.quantize(16), "PNG"),
        "alpha.png": encode(alpha, "PNG"),
        "palette-alpha.png": encode(alpha.quantize(16), "PNG"),
        "alpha.webp": encode(alpha, "WEBP", lossless=True),
        "deep.png": _deep_png(picture),
        "plain.avif": encode(picture, "AVIF", quality=95),
        "plain.bmp": encode(picture, "BMP"),
        "really-a-png.jpg": encode(picture, "PNG"),
        "really-a-gif.tiff": encode(picture, "GIF"),
        "trailing.jpg": whole + b"\xd9\xff\x00garbage" * 500,
        "filled-up.jpg": whole + bytes(100_000),
        "trailing-filled-up.jpg": whole + b"SEFT\xff\xda" * 500 + bytes(9),
        "odd-scan.jpg": _odd_scan(whole),
        "polyglot.jpg": whole + b"%PDF-1.4\nPK\x03\x04<svg/>",
        "bad-exif.jpg": encode(picture, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(30)),
        "bad-profile.png": encode(picture, "PNG", icc_profile=b"no profile" * 20),
        "UPPER.JPG": whole,
    }
    for name, data in colours.items():
        (folder / name).write_bytes(data)
    cases = [Hostile(name) for name in colours]
    grey = {
        "grey.jpg": encode(picture.convert("L"), "JPEG", quality=95),
        "grey-alpha.png": encode(alpha.convert("LA"), "PNG"),
        "deep-grey.png": png(2, 2, 16, 0, b"".join(b"\0" + struct.pack(">HH", *row) for row in _deep_grey())),
    }
    for name, data in grey.items():
        (folder / name).write_bytes(data)
    cases += [Hostile(name, colours="grey", size=(2, 2) if name.startswith("deep") else (512, 341)) for name in grey]
    odd = {
        "one-bit.png": (encode(picture.convert("1"), "PNG"), (512, 341)),
        "one-pixel.png": (encode(scene(1, 1), "PNG"), (1, 1)),
        "panorama.png": (encode(scene(20_000, 1), "PNG"), (512, 1)),
        "pole.jpg": (encode(scene(1, 20_000), "JPEG"), (1, 512)),
    }
    for name, (data, _) in odd.items():
        (folder / name).write_bytes(data)
    cases += [Hostile(name, colours="any", size=size) for name, (_, size) in odd.items()]
    return cases + _turned(folder)


def _odd_scan(data: bytes) -> bytes:
    """A JPEG of which libjpeg warns, and has all pixels: old Samsung phones write such scan headers."""
    end_of_spectrum = data.index(b"\xff\xda") + 12
    return data[:end_of_spectrum] + b"\0" + data[end_of_spectrum + 1 :]


def _deep_grey() -> tuple[tuple[int, int], tuple[int, int]]:
    """The scene's brightness in 16 bits."""
    values = [int((0.299 * r + 0.587 * g + 0.114 * b) * 257) for r, g, b in SCENE]
    return (values[0], values[1]), (values[2], values[3])


def _deep_png(picture: Image.Image) -> bytes:
    """The picture with 16 bits a colour."""
    data = picture.tobytes()
    row = picture.width * 3
    rows = (data[start : start + row] for start in range(0, len(data), row))
    return png(*picture.size, 16, 2, b"".join(b"\0" + bytes(b for byte in r for b in (byte, byte)) for r in rows))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera held in each orientation stores an upright scene: the inverse of what the tag asks for."""


def turned(picture: Image.Image, orientation: int, form: str = "JPEG") -> bytes:
    """The picture as a camera stores it that was held that way."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
    return encode(stored, form, quality=95, exif=exif)


def _turned(folder: Path) -> list[Hostile]:
    for orientation in range(1, 9):
        (folder / f"orientation-{orientation}.jpg").write_bytes(turned(scene(), orientation))
    return [Hostile(f"orientation-{orientation}.jpg") for orientation in range(1, 9)]


def _names(folder: Path) -> list[Hostile]:
    """Good pictures with names that break programs."""
    data = encode(scene(), "JPEG", quality=95)
    names = [
        "two\nlines.jpg",
        os.fsdecode(b"not-utf8-\xff\xfe.jpg"),
        "n" * 251 + ".jpg",
        "-rf.jpg",
        "a 'b' \"c\" $d.jpg",
        *("#.jpg", "+.jpg", "$SYS.jpg", "%s%n%d.jpg", '{"a": [1].jpg', "!env HOME.jpg"),
        *("\x1b[31mred\x07.jpg", "\u202egpj.exe.jpg", "line\u2028line.jpg", "\r.jpg"),
        os.fsdecode(b"\xff" * 251 + b".jpg"),
    ]
    names += ["Übergröße 写真 🎈.jpg", "sub\tfolder/deep/er/x.jpg", os.fsdecode(b"folder-\xff/x.jpg")]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [Hostile(name) for name in names]


def _not_files(folder: Path) -> list[Hostile]:
    """Things with the name of a picture that are none, and links."""
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    elsewhere.mkdir()
    (elsewhere / "linked.jpg").write_bytes(encode(scene(), "JPEG", quality=95))
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket has room for 107 bytes
        listener.bind("socket.jpg")
        os.chdir(here)
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(encode(scene(), "JPEG", quality=95))
    links: dict[str, str | Path] = {
        "loop.jpg": "loop.jpg",
        "broken.jpg": "/nowhere/at-all.jpg",
        "to-folder.jpg": elsewhere,
        "device.jpg": "/dev/zero",
        "linked.jpg": elsewhere / "linked.jpg",
        "circle": ".",
        "outside": elsewhere,
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    locked = folder / "locked.jpg"
    locked.write_bytes(encode(scene(), "JPEG", quality=95))
    locked.chmod(0)
    return [
        Hostile("pipe.jpg", "a named pipe"),
        Hostile("socket.jpg", "a socket"),
        Hostile("folder.jpg", "a folder, not a picture"),
        Hostile("folder.jpg/inside.jpg"),
        Hostile("loop.jpg", "leads back to itself"),
        Hostile("broken.jpg", "a symbolic link to '/nowhere/at-all.jpg', which does not exist"),
        Hostile("to-folder.jpg", "a symbolic link to a folder"),
        Hostile("device.jpg", "a device"),
        Hostile("linked.jpg"),
        # root may read everything
        Hostile("locked.jpg", "" if os.access(locked, os.R_OK) else "may not read it"),
    ]
