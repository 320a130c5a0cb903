"""The two libraries that decode pictures, made to agree: libvips, and Pillow where libvips does not help.

libvips streams and shrinks while it loads, so that a 24-megapixel JPEG costs 10 MB instead of 70; Pillow is used
for everything when libvips is not there, and for GIF and BMP always: the libvips wheels read no BMP, and
libvips ends the whole process when memory runs out in a GIF (its GIF reader allocates with g_malloc).

Both: the first frame only, turned upright by its EXIF orientation, shrunk with a Lanczos filter (never enlarged),
embedded colour profiles converted to sRGB, transparency put on white (most transparent pictures are drawings made
for a page), 16 bits cut to 8. A broken picture is an error, not a picture that is half grey; but a JPEG with a hole
in the middle is one to libvips alone, because Pillow does not pass on what libjpeg says of it.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import warnings
from typing import TYPE_CHECKING

from edge_daemon.errors import PictureError
from edge_daemon.messages import THUMBNAIL_PX
from edge_daemon.picture import KINDS, Decoder, Limits, Picture, check_pixels, damaged, fit

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
"""The EXIF tag: 1…8; from 5 on the picture lies on its side."""
_GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma, which is what Pillow's conversion to "L" uses."""

_TRIFLES = re.compile(r"extraneous bytes|SOS parameters|Adobe color|JFIF revision|ICC marker|progression sequence")
"""Warnings of libjpeg (jerror.h) that cost no pixel."""
_MOVING_AVIF = b"avis"
"""The major brand of an animation, of which libvips' reader sees no picture."""
_NO_HEADER = "its header makes no sense"
_BROKEN = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, struct.error),
    *(AttributeError, RuntimeError, AssertionError),
)
"""What Pillow's parsers trip over in broken files: its own Image.open has the like of the first line."""


def open_decoder(which: str = "auto") -> Decoder:
    """The decoder that is asked for: `pyvips`, `pillow`, or `auto`, the first of them that works here.

    Raises ImportError or OSError when the one that was named cannot be loaded.
    """
    if which == "pillow":
        return PillowDecoder()
    try:
        return VipsDecoder()
    except (ImportError, OSError) as error:  # OSError: the binding is there, the library is not
        if which != "auto":
            raise
        print(f"pyvips cannot be used ({error}); Pillow decodes the pictures, with more memory", file=sys.stderr)
        return PillowDecoder()


class VipsDecoder:
    """libvips for JPEG, PNG, WebP, TIFF, AVIF and (where the build can) HEIC; Pillow for the rest."""

    _LOADERS = ("Jpeg", "Png", "Webp", "Tiff", "Heif")

    def __init__(self) -> None:
        """Load libvips, shut all its loaders but the ones we need, and keep it small."""
        os.environ.setdefault("VIPS_CONCURRENCY", "1")  # the model needs the cores more
        os.environ.setdefault("VIPS_DISC_THRESHOLD", "1024g")  # never spill to an SD card; it knows no larger unit
        os.environ.setdefault("VIPS_WARNING", "0")  # stderr is for last words
        import pyvips

        pyvips.cache_set_max(0)
        pyvips.operation_block_set("VipsForeignLoad", True)
        for loader in self._LOADERS:
            pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)
        self._vips = pyvips
        self._pillow = PillowDecoder()
        version = ".".join(str(pyvips.version(part)) for part in range(3))
        self.name = f"libvips {version}; GIF and BMP: {self._pillow.name}"

    def decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        """Decode the first frame. Raises PictureError, or MemoryError when a memory limit was hit."""
        if kind in ("gif", "bmp") or (kind == "avif" and data[8:12] == _MOVING_AVIF):
            return self._pillow.decode(data, kind, limits)
        # Libjpeg only warns when a part of the picture is missing, but also of trifles that all readers forgive.
        fail_on, colours = "warning" if kind == "jpeg" else "error", True
        while True:
            try:
                return self._decode(data, kind, limits, fail_on, colours)
            except self._vips.Error as error:
                text = str(error)
                if colours and "VipsIcc" in text:
                    colours = False
                elif fail_on == "warning" and _TRIFLES.search(text):
                    fail_on = "error"
                else:
                    raise self._explain(text, kind) from error

    def _decode(self, data: bytes, kind: str, limits: Limits, fail_on: str, colours: bool) -> Picture:
        header = self._vips.Image.new_from_buffer(data, "", access="sequential")
        width, height = header.width, header.height
        if header.get_typeof("orientation") and header.get("orientation") >= 5:
            width, height = height, width
        check_pixels(width, height, limits)
        if header.format not in ("uchar", "ushort"):
            raise PictureError(f"its samples are of type {header.format!r}; 8 and 16 bits are supported")
        profile = colours and header.get_typeof("icc-profile-data") != 0
        if header.interpretation == "cmyk" and not profile:
            return self._pillow.decode(data, kind, limits)
        to_width, to_height = fit(width, height, limits.max_side_px)
        image = self._vips.Image.thumbnail_buffer(
            data,
            to_width,
            height=to_height,
            size="force",
            **({"output_profile": "srgb"} if profile else {}),
            # The operation's own `fail_on` is ignored for buffers (libvips issue 5195); the loader's is not.
            option_string=f"[fail_on={fail_on}]",
        )
        image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=[255, 255, 255])
        image = image.cast("uchar").copy_memory()
        grey = image.recomb([list(_GREY)]).rint().cast("uchar")
        thumbnail = grey.thumbnail_image(THUMBNAIL_PX, height=THUMBNAIL_PX, size="force")
        pixels, squeezed = (bytes(result.write_to_memory()) for result in (image, thumbnail))
        return Picture(to_width, to_height, width, height, pixels, squeezed)

    def _explain(self, text: str, kind: str) -> Exception:
        """One of our errors from libvips' log of everything that went wrong."""
        if re.search(r"(out of|insufficient) memory|memory alloc", text, re.IGNORECASE):
            return MemoryError(text)
        lines = [line.strip() for line in text.splitlines() if ": " in line]
        detail = lines[-1] if lines else ""
        if kind in ("heic", "avif") and re.search(r"unsupported|decoder plugin|not been built in", text, re.IGNORECASE):
            return PictureError(f"this build of libvips cannot decode {KINDS[kind]} ({detail}); convert it to JPEG")
        return damaged(kind, _NO_HEADER if "known format" in detail else detail)


class PillowDecoder:
    """Pillow for everything it reads: no HEIC, and AVIF from Pillow 11.3 on."""

    def __init__(self) -> None:
        """Load Pillow."""
        import PIL.Image

        PIL.Image.MAX_IMAGE_PIXELS = None  # max_pixels is checked before anything is decoded
        PIL.Image.init()
        self._open = PIL.Image.open
        self._known = set(PIL.Image.OPEN)
        self.name = f"Pillow {PIL.__version__}"

    def decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        """Decode the first frame. Raises PictureError, or MemoryError when a memory limit was hit."""
        if kind.upper() not in self._known:
            raise PictureError(f"{KINDS[kind]} pictures need libvips (pip install pyvips pyvips-binary)")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._decode(data, kind, limits)
        except (PictureError, MemoryError):
            raise
        except _BROKEN as error:
            raise damaged(kind, _NO_HEADER if "cannot identify" in str(error) else str(error)) from error

    def _decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        if kind == "png":  # the checksums, which reading the pixels does not look at
            with self._open(io.BytesIO(data), formats=(kind.upper(),)) as image:
                check_pixels(*image.size, limits)
                image.verify()
        with self._open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            width, height = image.size
            check_pixels(width, height, limits)
            # Pillow turns a TIFF by itself, and only that.
            orientation = 1 if kind == "tiff" else image.getexif().get(ORIENTATION, 1)
            to_size = fit(width, height, limits.max_side_px)
            profile = image.info.get("icc_profile")
            image.draft(None, (2 * to_size[0], 2 * to_size[1]))  # JPEG only: shrink while decoding
            upright = _turn(_srgb(_shrink(_plain(image), to_size), profile), orientation)
        if orientation in range(5, 9):
            width, height = height, width
        return Picture(*upright.size, width, height, upright.tobytes(), _thumbnail(upright))


def _plain(image: Image) -> Image:
    """L, LA, RGB, RGBA or CMYK: what a filter can work on."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise PictureError(f"its samples are of type {image.mode!r} (32 bits); 8 and 16 bits are supported")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.load()
    return image if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _shrink(image: Image, size: tuple[int, int]) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.LANCZOS, reducing_gap=3.0)


def _srgb(image: Image, profile: bytes | None) -> Image:
    """RGB on white, from the embedded profile where there is a usable one."""
    from PIL import Image as Images
    from PIL import ImageCms

    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode.removesuffix("A")) if alpha else image
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            converted = ImageCms.profileToProfile(
                colours, source, ImageCms.createProfile("sRGB"), renderingIntent=intent, outputMode="RGB"
            )
            colours = converted or colours
        except (
            ImageCms.PyCMSError,
            OSError,
        ):  # a profile for other colours than the picture has; libvips ignores it too
            pass
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    white = Images.new("RGB", image.size, (255, 255, 255))
    white.paste(colours, mask=alpha)
    return white


def _turn(image: Image, orientation: int) -> Image:
    """The picture upright, from its EXIF orientation."""
    from PIL.Image import Transpose

    turns = (
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    return image.transpose(turns[orientation - 2]) if orientation in range(2, 9) else image


def _thumbnail(image: Image) -> bytes:
    from PIL.Image import Resampling

    return image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Resampling.LANCZOS, reducing_gap=2.0).tobytes()
