"""Cameras in the network: a real RTSP server, MJPEG over HTTP and films, read by a real grabber."""

from __future__ import annotations

import re
import signal
import socket
import time
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from PIL import Image

from edge_daemon.messages import Frame, Next
from edge_daemon.shown_address import HIDDEN
from tests.cameras import BadLine, MjpegServer, RtspServer, film, scenes
from tests.grabbers import ALIKE, DEADLINE_S, CameraGrabber, difference, thumbnail_difference

PASSWORD = "p@:/%ß c?t"
"""Whatever may go wrong when it is put into an address."""
SCENES = scenes(3)
NOISY = 25.0
"""As ALIKE, for noise, of which an encoder leaves out much; another noise differs by twice as much."""


def reader(url: str | Path, **settings: object) -> CameraGrabber:
    return CameraGrabber(**{"type": "stream", "url": str(url), **settings})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    """A camera with a login, H.264."""
    with RtspServer(tmp_path_factory.mktemp("rtsp"), "--user", "me", "--password", PASSWORD) as started:
        yield started


LOGIN = {"username": "me", "password": PASSWORD}

# ---- what is seen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "h264-slices", "jpeg"])
def test_the_frames_show_what_the_camera_sees(tmp_path: Path, codec: str) -> None:
    with RtspServer(tmp_path, "--codec", codec) as camera:
        camera.show(SCENES[0])
        with reader(camera.url) as grabber:
            for picture in (*SCENES, SCENES[0]):
                camera.show(picture)
                frame = grabber.frame_like(picture)
                assert (frame.width_px, frame.height_px) == (512, 384)
                assert (frame.original_width_px, frame.original_height_px) == (640, 480)
                assert thumbnail_difference(frame, picture) < ALIKE
                assert time.time() - 5 < frame.captured_at_s <= time.time()
            assert difference(frame, SCENES[1]) > 2 * ALIKE  # the measure measures
            assert "FFmpeg" in grabber.decoder
            for _ in range(3):
                later = grabber.frame()  # not asked for: key frames will do
                assert later.captured_at_s > frame.captured_at_s
                assert difference(later, SCENES[0]) < ALIKE
                frame = later


def test_resolution_and_shape_may_change_in_the_middle(tmp_path: Path) -> None:
    wide, high = scenes(2, (800, 448))[1], scenes(2, (240, 320))[0]
    with RtspServer(tmp_path) as camera, reader(camera.url) as grabber:
        for picture, size in ((SCENES[0], (512, 384)), (wide, (512, 287)), (high, (240, 320)), (SCENES[1], (512, 384))):
            camera.show(picture)
            frame = grabber.frame_like(picture)
            assert (frame.width_px, frame.height_px) == size
            assert (frame.original_width_px, frame.original_height_px) == picture.size


def test_frames_come_over_udp_as_well(server: RtspServer) -> None:
    server.show(SCENES[0])
    for transport, sockets in (("udp", {"udp", "tcp"}), ("tcp", {"tcp"})):
        with reader(server.url, transport=transport, **LOGIN) as grabber:
            grabber.frame_like(SCENES[0])
            process = psutil.Process(grabber.process.pid)
            assert {kind for kind in ("udp", "tcp") if process.net_connections(kind)} == sockets


def test_with_decode_keyframes_only_key_frames_are_shown_even_to_who_asks(tmp_path: Path) -> None:
    with RtspServer(tmp_path, "--key-every", "20") as camera, reader(camera.url, decode="keyframes") as grabber:
        camera.show(SCENES[0])
        times_s = [grabber.frame(fresh=True).captured_at_s for _ in range(3)]
    assert times_s[-1] - times_s[0] > 1.0  # twenty pictures a second, a key frame every second


def test_who_asks_gets_the_newest_and_rare_key_frames_are_not_waited_for(tmp_path: Path) -> None:
    with RtspServer(tmp_path, "--key-every", "3000") as camera:
        camera.show(SCENES[0])
        with reader(camera.url) as grabber:
            grabber.frame()
            camera.show(SCENES[1])
            grabber.frame_like(SCENES[1])
            camera.show(SCENES[2])
            while difference(grabber.frame(), SCENES[2]) > ALIKE:  # nobody asks, minutes before the next key frame
                pass


def test_with_decode_all_every_frame_is_there(server: RtspServer) -> None:
    server.show(SCENES[0])
    with reader(server.url, decode="all", **LOGIN) as grabber:
        times_s = [grabber.frame().captured_at_s for _ in range(20)]
        server.show(SCENES[1])
        grabber.frame_like(SCENES[1])
    assert times_s == sorted(set(times_s))
    assert times_s[-1] - times_s[1] < 5  # eighteen pictures, not eighteen key frames


def test_mjpeg_over_http(tmp_path: Path) -> None:
    with MjpegServer(SCENES, fps=20, login=f"me:{PASSWORD}") as camera:
        with reader(camera.url, **LOGIN) as grabber:
            for picture in SCENES:
                grabber.frame_like(picture)
        with reader(camera.url, username="me", password="wrong") as grabber:
            assert grabber.problem() == f"{camera.url} refuses the login: check username and password of this source"


# ---- files -----------------------------------------------------------------------------------------------


def test_a_file_runs_at_its_own_pace_and_ends(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [picture for picture in SCENES for _ in range(6)], fps=10)
    with reader(path, decode="all") as grabber:
        first = grabber.frame_like(SCENES[0])
        last = grabber.frame_like(SCENES[2])
        assert last.captured_at_s - first.captured_at_s > 0.5
        assert grabber.problem() == "the stream ended"
        assert grabber.problem() == "the stream ended"  # and it stays so


def test_frames_that_the_decoder_holds_back_are_shown(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", SCENES[:1] * 30, options={"bf": "3", "g": "8"})
    with reader(path) as grabber:
        for fresh in (False, True, False):
            assert difference(grabber.frame(fresh=fresh), SCENES[0]) < ALIKE


@pytest.mark.parametrize("decode", ["auto", "all"])
def test_a_stream_with_one_key_frame_and_frames_out_of_order_goes_on(tmp_path: Path, decode: str) -> None:
    path = film(tmp_path / "film.mkv", SCENES * 20, options={"bf": "3", "g": "250"})
    with reader(path, decode=decode) as grabber:
        times_s = [grabber.frame(fresh=True).captured_at_s for _ in range(6)]
    assert times_s == sorted(times_s)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", SCENES[:1] * 10, pixel_shape=Fraction(4, 3))
    with reader(path) as grabber:
        frame = grabber.frame()
    assert (frame.original_width_px, frame.original_height_px) == (853, 480)
    assert (frame.width_px, frame.height_px) == (512, 288)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_4k_fits_into_the_memory(tmp_path: Path, codec: str) -> None:
    quick = {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none"}
    large = SCENES[0].resize((3840, 2160))
    path = film(tmp_path / "film.mp4", [large] * 2, codec=codec, options=quick)
    with reader(path, decode="all") as grabber:
        assert difference(grabber.frame(fresh=True), SCENES[0]) < ALIKE
        print(f"{codec}, 3840×2160: {grabber.status('VmHWM') / 1024:.0f} MiB resident at most")


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [SCENES[0].resize((5760, 3240))] * 2, options={"preset": "ultrafast"})
    with reader(path, decode_memory_bytes=80 << 20) as grabber:
        assert "needs more memory than" in grabber.problem()


# ---- what goes wrong -------------------------------------------------------------------------------------


def test_a_wrong_login_and_none_are_told_apart_and_never_shown(server: RtspServer) -> None:
    place = server.url
    with_login = server.url.replace("//", "//me:sesame@") + "?token=sesame"
    cases = (
        ({"url": server.url}, f"{place} asks for a login: set username and password of this source"),
        ({"url": server.url, "username": "me", "password": "sesame"}, f"{place} refuses the login: check username"),
        ({"url": with_login}, f"{place} refuses the login: check username"),
    )
    for settings, words in cases:
        with CameraGrabber(type="stream", **settings) as grabber:
            reason = grabber.problem()
            assert reason.startswith(words)
            arguments = Path(f"/proc/{grabber.process.pid}/cmdline").read_text()
            assert "sesame" not in reason + arguments + grabber.stderr()


@pytest.mark.parametrize("login", ["me:se/same", "me:1/same", "me:se?same", "me:se#same", "me:1#same"])
def test_a_login_that_is_not_written_as_it_should_be_is_never_shown(login: str) -> None:
    """FFmpeg takes its beginning for host and port."""
    with CameraGrabber(type="stream", url=f"rtsp://{login}@127.0.0.1/x") as grabber:
        reason = grabber.problem()
        assert reason.startswith(f"rtsp://{HIDDEN}: ")
        assert not {"me:", "'me'", "same"} & set(re.split("[^\\w:']", reason + grabber.stderr()))


def test_a_path_that_the_camera_does_not_know(server: RtspServer) -> None:
    with reader(server.url.replace("/test", "/tset"), **LOGIN) as grabber:
        assert (
            grabber.problem() == f"there is no such stream as '/tset' at 127.0.0.1:{server.port}: check the path in url"
        )


def test_a_login_in_the_path_is_never_shown(server: RtspServer) -> None:
    with reader(server.url.replace("/test", "/user=me&password=sesame&channel=1"), **LOGIN) as grabber:
        assert grabber.problem().startswith("there is no such stream as '/user=…' at 127.0.0.1:")
        assert "sesame" not in grabber.stderr()


def test_addresses_where_there_is_no_camera(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    text = tmp_path / "text"
    text.write_text("no film at all\n" * 100)
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    cases = {
        f"rtsp://127.0.0.1:{port}/x": f"nothing listens at 127.0.0.1:{port}: check the port in url",
        f"http://me:sesame@127.0.0.1:{port}/x": f"nothing listens at 127.0.0.1:{port}: check the port in url",
        "rtsp://me:sesame@camera.invalid/x": "the name 'camera.invalid' in url cannot be resolved",
        "rtps://me:sesame@127.0.0.1/x": "this FFmpeg knows no addresses that begin with rtps://",
        str(text): f"{text}: what it sends is not a video that FFmpeg knows",
        str(sound): "there is no video in it",
        f"file://{tmp_path}/nothing": f"the file '{tmp_path}/nothing' cannot be read: No such file or directory",
    }
    for url, words in cases.items():
        with reader(url) as grabber:
            reason = grabber.problem()
            assert reason.startswith(words)
            assert "sesame" not in reason + grabber.stderr()


def test_a_camera_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        with reader(url, open_timeout_s=1.0) as grabber:
            assert grabber.problem().startswith(f"{url} did not answer")
            assert grabber.idles  # it said that it lives


def test_a_server_that_was_killed_is_noticed_and_read_again_when_it_is_back(tmp_path: Path) -> None:
    with RtspServer(tmp_path) as camera:
        camera.show(SCENES[0])
        with reader(camera.url) as grabber:
            grabber.frame_like(SCENES[0])
            camera.process.kill()
            killed_s = time.monotonic()
            assert grabber.problem() in ("the stream ended", f"{camera.url} cut the connection")
            print(f"noticed after {time.monotonic() - killed_s:.2f} s")
    with reader(camera.url) as grabber:
        assert grabber.problem().startswith("nothing listens")
    with RtspServer(tmp_path, port=camera.port) as again, reader(camera.url) as grabber:
        again.show(SCENES[1])
        started_s = time.monotonic()
        grabber.frame_like(SCENES[1])
        print(f"a picture again {time.monotonic() - started_s:.2f} s after the server was back")


def test_what_a_bad_line_makes_of_a_stream_is_not_shown(tmp_path: Path) -> None:
    # a picture that fills many packets, and changes all the time: nothing in it is said twice
    noise = [Image.effect_noise((640, 480), 60).convert("RGB") for _ in range(2)]
    with RtspServer(tmp_path) as camera, BadLine(camera.port) as line:
        camera.show(noise[0])
        with reader(line.url, read_timeout_s=3.0) as grabber:
            good = grabber.frame_like(noise[0], alike=NOISY)
            line.spoils = True
            spoilt_s = time.monotonic()
            while isinstance(answer := grabber.next(fresh=True), Frame):  # it may have been on its way
                assert difference(answer, noise[0]) < NOISY
                assert answer.captured_at_s < good.captured_at_s + 3.0
            assert answer.reason.startswith("no whole picture for")
            print(f"given up after {time.monotonic() - spoilt_s:.2f} s")
        line.spoils = False
        with reader(line.url) as grabber:
            camera.show(noise[1])
            grabber.frame_like(noise[1], alike=NOISY)
            line.spoils = True
            time.sleep(0.5)
            line.spoils = False
            spoilt_s = time.time()
            while grabber.frame(fresh=True).captured_at_s < spoilt_s:
                pass
            print(f"good pictures again {time.time() - spoilt_s:.2f} s after the line was")


def test_a_stream_that_stands_still(tmp_path: Path) -> None:
    with RtspServer(tmp_path) as camera:
        camera.show(SCENES[0])
        with reader(camera.url, read_timeout_s=2.0) as grabber:
            grabber.frame_like(SCENES[0])
            camera.process.send_signal(signal.SIGSTOP)
            stopped_s = time.time()
            while isinstance(answer := grabber.next(fresh=True), Frame):
                assert answer.captured_at_s < stopped_s + 1.0  # not when FFmpeg gave it up
            assert answer.reason == f"nothing came from {camera.url} for 2 s (read_timeout_s)"
            print(f"noticed after {time.time() - stopped_s:.2f} s")
        with reader(camera.url, open_timeout_s=1.0) as grabber:
            assert grabber.problem().startswith(f"{camera.url} did not answer")


def test_a_grabber_that_hangs_in_a_camera_leaves_with_the_daemon() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, reader(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x", open_timeout_s=300.0) as grabber:
        grabber.send(Next())
        silent.accept()
        assert grabber.process.stdin is not None
        grabber.process.stdin.close()
        assert grabber.process.wait(DEADLINE_S) == 0


def test_memory_stays_flat_over_changing_pictures() -> None:
    with MjpegServer(scenes(10), fps=100) as camera, reader(camera.url) as grabber:
        for number in range(250):
            grabber.frame(fresh=True)
            if number == 50:
                before_kib = grabber.status("VmRSS")
                descriptors = psutil.Process(grabber.process.pid).num_fds()
        after_kib = grabber.status("VmRSS")
        print(f"{before_kib / 1024:.1f} MiB resident after 50 frames, {after_kib / 1024:.1f} after 250")
        assert after_kib - before_kib < 4096
        assert psutil.Process(grabber.process.pid).num_fds() == descriptors
