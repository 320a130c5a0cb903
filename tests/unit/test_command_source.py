"""Programs that write JPEGs, and the telling apart of what they write."""

from __future__ import annotations

import io
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from PIL import Image

from edge_daemon.errors import PictureError
from edge_daemon.sources.jpeg_stream import BETWEEN_BYTES, JpegSplitter
from edge_daemon.units import MIB
from tests.cameras import jpeg, program, scenes
from tests.grabbers import ALIKE, DEADLINE_S, CameraGrabber, difference

SCENES = scenes(3)


def runner(command: Sequence[str], **settings: object) -> CameraGrabber:
    return CameraGrabber(**{"type": "command", "command": list(command), **settings})


def script(text: str) -> list[str]:
    return [sys.executable, "-c", "import os, sys, time\n" + text]


# ---- telling JPEGs apart ---------------------------------------------------------------------------------


def encoded(**options: object) -> bytes:
    file = io.BytesIO()
    SCENES[0].save(file, "JPEG", **options)
    return file.getvalue()


def with_preview() -> bytes:
    """A JPEG that has another one inside, as every photograph has."""
    preview = jpeg(SCENES[1].resize((64, 48)))
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2) + preview
    whole = encoded()
    return whole[:2] + segment + whole[2:]


KINDS = {
    "baseline": encoded(),
    "progressive": encoded(progressive=True),
    "restart markers": encoded(restart_marker_blocks=4),
    "preview": with_preview(),
    "fill bytes": encoded()[:2] + b"\xff\xff\xff" + encoded()[2:],
    "grey": jpeg(SCENES[2].convert("L")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_whole_pictures_come_out_however_they_come_in(kind: str, step: int) -> None:
    pictures = [KINDS[kind], KINDS["preview"], KINDS[kind]]
    data = b"".join(pictures)
    splitter = JpegSplitter(MIB)
    found = [picture for at in range(0, len(data), step) for picture in splitter.feed(data[at : at + step])]
    assert found == pictures


def test_the_heads_of_a_web_camera_are_passed_over() -> None:
    head = b"\r\n--next\r\nContent-Type: image/jpeg\r\nContent-Length: 1234\r\n\r\n"
    picture = KINDS["baseline"]
    splitter = JpegSplitter(MIB)
    assert splitter.feed((head + picture) * 2 + head) == [picture, picture]
    assert splitter.feed(picture) == [picture]


@pytest.mark.parametrize("step", [4096, 1 << 20])
def test_pictures_that_are_filled_up_with_zeros_are_told_apart(step: int) -> None:
    """Some cameras write buffers of one size."""
    picture = KINDS["baseline"]
    data = (picture + bytes(20 * BETWEEN_BYTES)) * 3
    splitter = JpegSplitter(MIB)
    found = [one for at in range(0, len(data), step) for one in splitter.feed(data[at : at + step])]
    assert found == [picture] * 3


def test_what_is_no_jpeg_is_refused() -> None:
    cases = {
        bytes(BETWEEN_BYTES + 1): "no JPEG begins",
        b"\xff\xd8\xff\xe0\x00\x01": "a segment of a JPEG says that it has 1 bytes",
        b"\xff\xd8hello": "must begin a marker",
    }
    for data, words in cases.items():
        with pytest.raises(PictureError, match=words):
            JpegSplitter(MIB).feed(data)


def test_a_picture_without_end_does_not_fill_the_memory() -> None:
    splitter = JpegSplitter(MIB)
    splitter.feed(KINDS["baseline"][:-2])
    with pytest.raises(PictureError, match=r"more than 1\.0 MB and no end"):
        list(map(splitter.feed, [bytes(100_000)] * 20))


def test_whatever_comes_is_pictures_or_an_error() -> None:
    rng = random.Random("noise")
    for _ in range(300):
        data = bytearray(KINDS["preview"] * 2)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0x00, 0xFF, 0xD8, 0xD9, 0xDA))
        try:
            pictures = JpegSplitter(MIB).feed(bytes(data))
        except PictureError:
            continue
        assert all(picture.startswith(b"\xff\xd8") and picture.endswith(b"\xff\xd9") for picture in pictures)


# ---- programs --------------------------------------------------------------------------------------------


def test_the_newest_picture_is_shown(tmp_path: Path) -> None:
    with runner(program(tmp_path, SCENES, pause_s=0.2)) as grabber:
        for picture in SCENES:
            frame = grabber.frame_like(picture)
            assert (frame.width_px, frame.height_px) == (512, 384)
            assert time.time() - DEADLINE_S < frame.captured_at_s <= time.time()


def test_what_piled_up_is_not_shown(tmp_path: Path) -> None:
    for number, picture in enumerate(SCENES[:2]):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture))
    loop = (
        f"os.chdir({str(tmp_path)!r})\n"
        "old, new = open('0.jpg', 'rb').read(), open('1.jpg', 'rb').read()\n"
        "for picture in [old] * 20 + [new] * 20: os.write(1, picture)\n"
        "open('written', 'w').close(); time.sleep(600)"
    )
    with runner(script(loop)) as grabber:
        wait_for_file(tmp_path / "written")
        assert difference(grabber.frame(), SCENES[1]) < ALIKE


def wait_for_file(path: Path) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_how_a_program_ended_is_said_in_its_own_words_without_its_login(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(KINDS["baseline"])
    one = f"sys.stdout.buffer.write(open({str(path)!r}, 'rb').read())\n"
    addresses = "http://camera/x?pwd=sesame rtsp://camera/user=me&password=sesame rtsp://me:a/b@sesame@camera/x"
    shown = "http://camera/x?*** rtsp://camera/user=*** rtsp://***@camera/x"
    say = f"print('{addresses}: gone', file=sys.stderr)\n"
    with runner(script(one + say + "sys.exit(3)")) as grabber:
        assert difference(grabber.frame(), SCENES[0]) < ALIKE
        reason = grabber.problem()
        assert reason == f"{sys.executable} ended with exit status 3; its last words: {shown}: gone"
        assert "sesame" not in grabber.stderr()
    with runner(script("os.kill(os.getpid(), 9)")) as grabber:
        assert grabber.problem() == f"{sys.executable} was ended by SIGKILL and wrote no JPEG"
    with runner(["true"]) as grabber:
        assert grabber.problem() == "true ended with exit status 0 and wrote no JPEG"


def test_programs_that_cannot_be_started(tmp_path: Path) -> None:
    with runner(["no-such-program"]) as grabber:
        assert grabber.problem().startswith("there is no program 'no-such-program' that can be run: check the first")
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"\x7fELF nonsense")
    nonsense.chmod(0o755)
    with runner([str(nonsense)]) as grabber:
        assert f"{nonsense} cannot be started: Exec format error" in grabber.problem()


@pytest.mark.parametrize("first", ["", "sys.stdout.buffer.write(open(sys.argv[1], 'rb').read()); sys.stdout.flush()\n"])
def test_a_silent_program_is_given_up(tmp_path: Path, first: str) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(KINDS["baseline"])
    command = [*script(first + "time.sleep(600)"), str(path)]
    with runner(command, open_timeout_s=3.0, read_timeout_s=1.0) as grabber:
        key = "read_timeout_s" if first else "open_timeout_s"
        assert grabber.problem().endswith(f"({key})")
        assert grabber.idles


def test_what_is_no_jpeg_and_what_is_a_broken_one_is_said(tmp_path: Path) -> None:
    with runner(["cat", "/dev/zero"]) as grabber:
        assert grabber.problem().startswith("what cat writes is not a JPEG: no JPEG begins")
    good, broken = KINDS["baseline"], KINDS["baseline"].replace(KINDS["baseline"][2000:4000], b"")
    paths = [tmp_path / "good.jpg", tmp_path / "broken.jpg"]
    for path, data in zip(paths, (good, broken), strict=True):
        path.write_bytes(data)
    loop = "while True: sys.stdout.buffer.write(open(sys.argv[1], 'rb').read()); sys.stdout.flush(); time.sleep(.05)"
    once = "sys.stdout.buffer.write(open(sys.argv[2], 'rb').read()); time.sleep(.5)\n"
    with runner([*script(once + loop), str(paths[0]), str(paths[1])]) as grabber:
        assert difference(grabber.frame(), SCENES[0]) < ALIKE
    with runner([*script(loop), str(paths[1])], read_timeout_s=1.0) as grabber:
        assert "writes is damaged: damaged or incomplete JPEG" in grabber.problem()


def test_our_limits_are_not_the_programs(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with runner(["sh", "-c", f"cat /proc/self/limits /proc/self/status > {told}"]) as grabber:
        grabber.problem()
    text = told.read_text(encoding="ascii")
    assert re.findall(r"Max data size +(\S+)", text) == ["unlimited"]
    assert int(re.findall(r"Max open files +(\S+)", text)[0]) > 256
    assert re.findall(r"SigIgn:\s+(\w+)", text) == ["0000000000000000"]


@pytest.mark.parametrize("end", ["pipe", "SIGKILL"])
def test_the_program_dies_with_the_grabber(tmp_path: Path, end: str) -> None:
    with runner(program(tmp_path, SCENES[:1], pause_s=600)) as grabber:  # it would not notice by itself
        grabber.frame()
        (child,) = psutil.Process(grabber.process.pid).children()
        assert os.getpgid(child.pid) == os.getpgid(grabber.process.pid)  # the daemon ends the group
        if end == "pipe":
            assert grabber.process.stdin is not None
            grabber.process.stdin.close()
        else:
            grabber.process.kill()
        psutil.wait_procs([child], timeout=DEADLINE_S)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_it_never_blocks_a_program_that_is_quick(tmp_path: Path) -> None:
    """Pictures that nobody asked for are read all the same."""
    count = tmp_path / "count"
    picture = tmp_path / "one.jpg"
    Image.new("RGB", (64, 64), "red").save(picture)
    loop = (
        f"data = open({str(picture)!r}, 'rb').read()\n"
        "for n in range(2000): sys.stdout.buffer.write(data)\n"
        f"sys.stdout.flush(); open({str(count)!r}, 'w').write('all')\ntime.sleep(600)"
    )
    with runner(script(loop)) as grabber:
        grabber.frame()
        wait_for_file(count)
