"""What becomes of picture files: both decoders, good pictures, hostile ones, and memory."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageCms

from edge_daemon import picture
from edge_daemon.decoders import PillowDecoder, VipsDecoder, open_decoder
from edge_daemon.errors import PictureError
from edge_daemon.messages import THUMBNAIL_PX
from edge_daemon.picture import Decoder, Limits, Picture
from tests.hostile import SCENE, Hostile, encode, make, png, scene, turned

LIMITS = Limits()
PILLOW_DIFFERS = {"9000x9000.jpg", "huge-tiles.tif", "profile-bomb.png", "text-bomb.png"}
"""A hole in a JPEG: libjpeg warns of it, Pillow keeps that to itself (decoders.py says so). Of a TIFF that has strips
and tiles it takes the strips. And it refuses a PNG whose texts become too large, where libvips leaves them out."""


@pytest.fixture(scope="module", params=[VipsDecoder, PillowDecoder], ids=["vips", "pillow"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    made: Decoder = request.param()
    return made


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Hostile]]:
    folder = tmp_path_factory.mktemp("pictures") / "in"
    folder.mkdir()
    return folder, make(folder)


def pixels(loaded: Picture) -> NDArray[np.int16]:
    return np.frombuffer(loaded.pixels, np.uint8).reshape(loaded.height_px, loaded.width_px, 3).astype(np.int16)


def photograph(width_px: int, height_px: int) -> Image.Image:
    """Soft colours with some edges, as a camera delivers them."""
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 255, (height_px // 16, width_px // 16, 3), dtype=np.uint8))
    soft = np.asarray(small.resize((width_px, height_px), Image.Resampling.BICUBIC)).copy()
    soft[height_px // 3 : height_px // 2, width_px // 4 : width_px // 2] = (250, 240, 20)
    return Image.fromarray(soft)


def with_alpha(image: Image.Image) -> Image.Image:
    ramp = Image.linear_gradient("L").resize(image.size)
    result = image.convert("RGBA")
    result.putalpha(ramp)
    return result


def test_there_are_at_least_sixty_hostile_files(hostile: tuple[Path, list[Hostile]]) -> None:
    _, cases = hostile
    assert len(cases) >= 60
    assert len({case.name for case in cases}) == len(cases)
    assert sum(bool(case.reason) for case in cases) >= 60


def test_every_hostile_file_is_read_right_or_refused_with_its_reason(
    decoder: Decoder, hostile: tuple[Path, list[Hostile]]
) -> None:
    folder, cases = hostile
    wrong = []
    for case in cases:
        if isinstance(decoder, PillowDecoder) and case.name in PILLOW_DIFFERS:
            continue
        try:
            loaded = picture.load(str(folder / case.name), decoder, LIMITS)
        except PictureError as error:
            if not case.reason or not re.search(case.reason, str(error)):
                wrong.append(f"{case.name!r}: {error}")
            continue
        if case.reason or not shows(loaded, case):
            wrong.append(f"{case.name!r} was read as {loaded}")
    assert not wrong, "\n".join(wrong)


def shows(loaded: Picture, case: Hostile) -> bool:
    """Whether a picture is what the case says."""
    if (loaded.width_px, loaded.height_px) != case.size:
        return False
    width, height = case.size
    points = [(height * y // 4, width * x // 4) for y in (1, 3) for x in (1, 3)]
    seen = np.array([pixels(loaded)[point] for point in points])
    right = np.array(SCENE)
    if case.colours == "grey":
        right = np.repeat((right @ np.array([0.299, 0.587, 0.114]))[:, None], 3, axis=1)
    return case.colours == "any" or bool(np.abs(seen - right).max() <= 12)


FORMS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encode(image, "JPEG", quality=90),
    "jpeg-progressive": lambda image: encode(image, "JPEG", progressive=True),
    "jpeg-grey": lambda image: encode(image.convert("L"), "JPEG"),
    "jpeg-inks": lambda image: encode(image.convert("CMYK"), "JPEG"),
    "jpeg-on-its-side": lambda image: turned(image, 6),
    "jpeg-small-colours": lambda image: encode(image, "JPEG", subsampling=0),
    "png": lambda image: encode(image, "PNG"),
    "png-alpha": lambda image: encode(with_alpha(image), "PNG"),
    "png-grey-alpha": lambda image: encode(with_alpha(image).convert("LA"), "PNG"),
    "png-palette": lambda image: encode(image.quantize(64), "PNG"),
    "png-palette-alpha": lambda image: encode(with_alpha(image).quantize(64), "PNG"),
    "png-one-bit": lambda image: encode(image.convert("1", dither=Image.Dither.NONE), "PNG"),
    "png-16-bit-grey": lambda image: encode(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"
    ),
    "png-odd-profile": lambda image: encode(image, "PNG", icc_profile=lab_profile()),
    "webp": lambda image: encode(image, "WEBP", quality=90),
    "webp-lossless-alpha": lambda image: encode(with_alpha(image), "WEBP", lossless=True),
    "gif": lambda image: encode(image, "GIF"),
    "tiff": lambda image: encode(image, "TIFF"),
    "tiff-lzw": lambda image: encode(image, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda image: encode(image, "TIFF", compression="jpeg"),
    "tiff-fax": lambda image: encode(image.convert("1", dither=Image.Dither.NONE), "TIFF", compression="group4"),
    "tiff-on-its-side": lambda image: turned(image, 8, "TIFF"),
    "png-on-its-side": lambda image: turned(image, 5, "PNG"),
    "webp-on-its-side": lambda image: turned(image, 7, "WEBP"),
    "avif-on-its-side": lambda image: turned(image, 6, "AVIF"),
    "bmp": lambda image: encode(image, "BMP"),
    "avif": lambda image: encode(image, "AVIF", quality=90),
    "p3": lambda image: bytes(
        pyvips.Image.new_from_array(np.asarray(image), interpretation="srgb")
        .icc_transform("p3", input_profile="srgb")
        .jpegsave_buffer(Q=95)
    ),
    "inks-with-profile": lambda image: bytes(
        pyvips.Image.new_from_array(np.asarray(image), interpretation="srgb")
        .icc_transform("cmyk", input_profile="srgb")
        .jpegsave_buffer(Q=95)
    ),
}

ROUGH = ("webp", "avif")
"""They halve the colours' resolution, and each library doubles it again in its own way."""


def lab_profile() -> bytes:
    """A profile for other colours than the picture's, which has to be ignored."""
    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return profile


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(803, 610), (330, 970), (320, 240)], ids=["landscape", "portrait", "small"])
def test_both_decoders_agree(form: str, size: tuple[int, int]) -> None:
    data = FORMS[form](photograph(*size))
    ours, theirs = (picture.decode(data, decoder, LIMITS) for decoder in (VipsDecoder(), PillowDecoder()))
    assert (ours.width_px, ours.height_px) == (theirs.width_px, theirs.height_px)
    assert (ours.original_width_px, ours.original_height_px) == (theirs.original_width_px, theirs.original_height_px)
    assert np.abs(pixels(ours) - pixels(theirs)).mean() <= (3.5 if form.startswith(ROUGH) else 2)
    thumbnails = [np.frombuffer(loaded.thumbnail, np.uint8).astype(np.int16) for loaded in (ours, theirs)]
    assert thumbnails[0].shape == (THUMBNAIL_PX * THUMBNAIL_PX,)
    assert np.abs(thumbnails[0] - thumbnails[1]).mean() <= 4  # black on white, sixteen times smaller, is the worst


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_original_size_is_upright_and_the_result_is_never_larger(decoder: Decoder, orientation: int) -> None:
    loaded = picture.decode(turned(scene(1000, 250), orientation), decoder, LIMITS)
    assert (loaded.original_width_px, loaded.original_height_px) == (1000, 250)
    assert (loaded.width_px, loaded.height_px) == (512, 128)
    small = picture.decode(turned(scene(100, 25), orientation), decoder, LIMITS)
    assert (small.width_px, small.height_px) == (100, 25)
    assert len(small.pixels) == 100 * 25 * 3


def test_transparency_becomes_white(decoder: Decoder) -> None:
    loaded = picture.decode(encode(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG"), decoder, LIMITS)
    assert set(loaded.pixels) == {255}


def test_the_thumbnail_shows_the_picture(decoder: Decoder) -> None:
    halves = Image.new("L", (800, 600), 0)
    halves.paste(255, (400, 0, 800, 600))
    thumbnail = np.frombuffer(picture.decode(encode(halves, "PNG"), decoder, LIMITS).thumbnail, np.uint8).reshape(
        32, 32
    )
    assert thumbnail[:, :14].max() <= 8
    assert thumbnail[:, 18:].min() >= 247


def test_an_ultra_hdr_photograph_is_a_jpeg(decoder: Decoder) -> None:
    """What new phones take; libvips has a loader of its own for them, which we keep shut."""
    image = pyvips.Image.new_from_array(np.asarray(scene()), interpretation="srgb").copy()
    gain = pyvips.Image.black(150, 100).jpegsave_buffer()
    for name, value in (("max-content-boost", 4.0), ("min-content-boost", 1.0), ("gamma", 1.0)):
        image.set_type(pyvips.GValue.array_double_type, f"gainmap-{name}", [value] * 3)
    for name in ("offset-sdr", "offset-hdr"):
        image.set_type(pyvips.GValue.array_double_type, f"gainmap-{name}", [1 / 64] * 3)
    for name, value in (("hdr-capacity-min", 1.0), ("hdr-capacity-max", 4.0)):
        image.set_type(pyvips.GValue.gdouble_type, f"gainmap-{name}", value)
    image.set_type(pyvips.GValue.gint_type, "gainmap-use-base-cg", 1)
    image.set_type(pyvips.GValue.blob_type, "gainmap-data", gain)
    assert shows(picture.decode(bytes(image.uhdrsave_buffer()), decoder, LIMITS), Hostile("photo.jpg"))


def test_limits_hold_before_anything_is_decoded(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(2_000, 1_000, 8, 2, b""))  # a header, and no pixels at all
    with pytest.raises(PictureError, match=r"2000×1000 = 2\.0 million pixels; at most 1\.9 million are decoded"):
        picture.load(str(path), decoder, Limits(max_pixels=1_900_000))
    with pytest.raises(PictureError, match=r"the file has 0\.0 MB; at most 0\.0 MB are read \(max_file_mib\)"):
        picture.load(str(path), decoder, Limits(max_file_bytes=10))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((512, 512), (512, 512)),
        ((513, 10), (512, 10)),
        ((20_000, 1), (512, 1)),
        ((1, 1), (1, 1)),
        ((300, 600), (256, 512)),
    ],
)
def test_fit(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert picture.fit(*size, 512) == fitted


def test_loaders_that_we_do_not_need_are_shut() -> None:
    """Should content of that kind ever reach libvips, it has nothing to read it with."""
    VipsDecoder()
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    for data in (svg, encode(scene(8, 8), "GIF"), b"%PDF-1.4\n"):
        with pytest.raises(pyvips.Error):
            pyvips.Image.new_from_buffer(data, "")


def test_auto_takes_pillow_and_says_so_where_pyvips_is_missing() -> None:
    code = (
        "import sys; sys.modules['pyvips'] = None\n"  # how Python itself marks a module that cannot be imported
        "from edge_daemon.decoders import open_decoder\n"
        "print(open_decoder().name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("Pillow ")
    assert "pyvips cannot be used" in done.stderr
    assert open_decoder().name.startswith("libvips ")


HUNGRY = """
import resource, sys
from edge_daemon import picture
from edge_daemon.decoders import open_decoder
from edge_daemon.errors import PictureError
decoder = open_decoder(sys.argv[1])
good = open(sys.argv[2], "rb").read()
picture.decode(good, decoder, picture.Limits())
resource.setrlimit(resource.RLIMIT_DATA, (60 << 20, 60 << 20))
for path in sys.argv[3:]:
    try:
        print(picture.load(path, decoder, picture.Limits()))
    except PictureError as error:
        print(error)
    picture.decode(good, decoder, picture.Limits())
"""


@pytest.mark.parametrize("which", ["pyvips", "pillow"])
def test_a_picture_that_needs_too_much_memory_is_only_a_problem(which: str, tmp_path: Path) -> None:
    """Each of these needs more than the 60 MiB that the process may have; it lives, and reads the next picture."""
    flat = Image.new("RGB", (4_000, 4_000), (90, 120, 200))
    paths = [tmp_path / name for name in ("good.jpg", "progressive.jpg", "interlaced.png", "large.gif", "large.webp")]
    paths[0].write_bytes(encode(scene(), "JPEG"))
    paths[1].write_bytes(encode(flat, "JPEG", progressive=True, subsampling=0))
    row = b"\0" + bytes(12_000)  # the passes of Adam7 come in another size, but the buffer for all comes first
    paths[2].write_bytes(png(4_000, 4_000, 8, 2, row * 4_000).replace(b"\x08\x02\0\0\0", b"\x08\x02\0\0\1", 1))
    fix_header_checksum(paths[2])
    paths[3].write_bytes(encode(flat.convert("P"), "GIF"))
    paths[4].write_bytes(encode(flat, "WEBP", method=0))
    command = [sys.executable, "-c", HUNGRY, which, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    # Pillow takes it for damage when libjpeg or libwebp run out of memory; everything else says what it is.
    named = lines[1:3] if which == "pillow" else lines
    for line in named:
        assert "needs more memory than the 63 MB it may have (decode_memory_mib)" in line


def fix_header_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_file_is_read_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(scene(), "JPEG"))
    assert picture.read_file(str(path), LIMITS) == path.read_bytes()
    with pytest.raises(PictureError, match="deleted, moved or renamed"):
        picture.read_file(str(tmp_path / "gone.jpg"), LIMITS)


def test_a_frame_of_an_animation_is_the_first(decoder: Decoder) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert picture.decode(buffer.getvalue(), decoder, LIMITS).pixels[:3] == bytes((200, 0, 0))
