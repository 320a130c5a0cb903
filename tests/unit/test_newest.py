"""Which packets are decoded for the newest picture, and what the decoder makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from edge_daemon.choices import Decode
from edge_daemon.sources.developing import Developer
from edge_daemon.sources.newest import MANY_BYTES, MANY_PACKETS, RARE_S, Arrived, Group
from edge_daemon.sources.scaling import Scaler, square_pixels
from edge_daemon.sources.video import joined
from tests.cameras import film, scenes


def group(decode: Decode, kinds: str, step_s: float = 0.1, size_bytes: int = 1) -> Group:
    """A group that was fed with k(ey frames) and others, one every step, the first at 0."""
    made = Group(decode)
    for number, kind in enumerate(kinds, 1):
        made.add(Arrived(None, number, (number - 1) * step_s, kind == "k", size_bytes))
    return made


def numbers(packets: Sequence[Arrived]) -> list[int]:
    return [arrived.number for arrived in packets]


# ---- which packets ---------------------------------------------------------------------------------------


def test_the_key_frame_is_enough_unless_somebody_asks() -> None:
    made = group("auto", "..k..k..")
    assert numbers(made.wanted(False, 0.7)) == [6]
    assert numbers(made.wanted(True, 0.7)) == [6, 7, 8]


@pytest.mark.parametrize(("decode", "fresh", "wanted"), [("keyframes", True, [3]), ("all", False, [3, 4, 5])])
def test_the_owner_may_choose(decode: Decode, fresh: bool, wanted: list[int]) -> None:
    assert numbers(group(decode, "k.k..").wanted(fresh, 0.4)) == wanted


def test_rare_key_frames_are_not_waited_for() -> None:
    assert numbers(group("auto", "k..").wanted(False, RARE_S)) == [1]
    assert numbers(group("auto", "k..").wanted(False, RARE_S + 0.1)) == [1, 2, 3]  # none came for long
    often = group("auto", "k.k.", step_s=RARE_S / 2)
    assert numbers(often.wanted(False, RARE_S)) == [3]
    seldom = group("auto", "k.k.", step_s=RARE_S / 2 + 0.1)
    assert numbers(seldom.wanted(False, RARE_S)) == [3, 4]


def test_before_the_first_key_frame_there_is_nothing() -> None:
    assert group("auto", "....").wanted(True, 0.4) == []
    assert group("auto", "....").key is None


@pytest.mark.parametrize("size_bytes", [0, MANY_BYTES // 10])
def test_too_many_packets_are_decoded_and_let_go(size_bytes: int) -> None:
    count = MANY_PACKETS if size_bytes == 0 else 10
    made = group("auto", "k" + "." * (count - 2), size_bytes=size_bytes)
    assert made.due() == []
    made.add(Arrived(None, count, 1.0, False, MANY_BYTES % 10 + size_bytes))
    due = made.due()[:5]
    assert numbers(due) == [1, 2, 3, 4, 5]
    made.let_go(due)
    assert made.due() == []
    assert numbers(made.wanted(True, 1.0))[0] == 6


def test_what_a_key_frame_has_replaced_is_not_let_go_of_again() -> None:
    made = group("all", "k..")
    due = made.due()
    made.add(Arrived(None, 4, 1.0, True, 1))
    made.let_go(due)
    assert numbers(made.due()) == [4]


def test_memory_is_bounded_when_nobody_decodes() -> None:
    made = group("auto", "k" + "." * (5 * MANY_PACKETS))
    assert len(made.due()) <= 2 * MANY_PACKETS


# ---- what the decoder makes of them ----------------------------------------------------------------------


def read(path: Path) -> tuple[Developer, list[Arrived]]:
    """A decoder, and the packets of a film."""
    container = av.open(str(path))
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    arrived = [Arrived(p, n, float(n), p.is_keyframe, p.size) for n, p in enumerate(packets, 1)]
    return Developer(stream.codec_context), arrived


def develop(developer: Developer, packets: Sequence[Arrived], *, now: bool = True) -> int:
    """The number of the newest good frame; 0: there is none."""
    developed = developer.develop(packets, now=now, breathe=lambda: None)
    return developed.number if developed else 0


SMALL = (320, 240)
CODECS = {
    "libx264": {"g": "5"},
    "libx265": {"g": "5", "x265-params": "log-level=none"},
    "mpeg4": {"g": "5", "bf": "1"},
    "mjpeg": {"strict": "-1"},
    "libvpx": {"g": "5", "deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_says_when_a_frame_came(tmp_path: Path, codec: str) -> None:
    developer, packets = read(film(tmp_path / "film.mkv", scenes(1, SMALL) * 16, codec=codec, options=CODECS[codec]))
    keys = [arrived.number for arrived in packets if arrived.is_key]
    assert develop(developer, packets[:1]) == 1  # at once, although most of these encoders reorder
    times_s = [0.0]
    for last in range(2, len(packets) + 1):
        first = max(key for key in keys if key <= last)
        developed = developer.develop(packets[first - 1 : last], now=True, breathe=lambda: None)
        assert developed is not None
        times_s.append(developed.at_s)
    assert times_s == sorted(times_s)
    assert len(packets) - 6 <= times_s[-1] <= len(packets)


def test_a_clock_that_is_set_back_holds_for_the_frames_that_follow(tmp_path: Path) -> None:
    developer, packets = read(film(tmp_path / "film.mkv", scenes(1, SMALL) * 20, options={"g": "10"}))
    assert develop(developer, packets[:10])
    later = [replace(arrived, at_s=arrived.at_s - 3600) for arrived in packets[10:]]
    developed = developer.develop(later, now=True, breathe=lambda: None)
    assert developed is not None
    assert developed.at_s < -3500


def test_what_follows_costs_itself_only(tmp_path: Path) -> None:
    developer, packets = read(film(tmp_path / "film.mkv", scenes(1) * 20, options={"tune": "zerolatency", "g": "10"}))
    breaths: list[int] = []

    def cost(of: Sequence[Arrived]) -> int:
        breaths.clear()
        developer.develop(of, now=True, breathe=lambda: breaths.append(1))
        return len(breaths)

    assert cost(packets[:1]) == 1
    assert cost(packets[:6]) == 5
    assert cost(packets[:6]) == 0
    assert cost(packets[10:11]) == 1
    assert cost(packets[10:15]) == 4
    assert cost(packets[15:17]) == 2  # what came before was let go
    assert cost(packets[18:19]) == 0  # here something is missing


def damaged(arrived: Arrived, number: int | None = None) -> Arrived:
    """The same with its second half gone."""
    whole = bytes(arrived.packet)
    packet = av.Packet(whole[: len(whole) // 2])
    packet.pts, packet.dts, packet.time_base = arrived.packet.pts, arrived.packet.dts, arrived.packet.time_base
    return Arrived(packet, number or arrived.number, arrived.at_s, arrived.is_key, packet.size)


def changing(count: int) -> list[Image.Image]:
    """Pictures of which every one is news."""
    return (scenes(5) * count)[:count]


def test_a_broken_frame_and_what_builds_upon_it_are_not_shown(tmp_path: Path) -> None:
    developer, packets = read(film(tmp_path / "film.mkv", changing(20), options={"tune": "zerolatency", "g": "10"}))
    assert develop(developer, packets[:3]) == 3
    packets[3] = damaged(packets[3])
    assert [develop(developer, packets[:n]) for n in (4, 5, 10)] == [3, 3, 3]
    assert developer.failures == 1
    assert develop(developer, packets[10:11]) == 11  # the next key frame
    assert (developer.failures, developer.failing_since_s) == (0, None)


def test_half_a_jpeg_is_no_picture(tmp_path: Path) -> None:
    developer, packets = read(film(tmp_path / "film.mkv", scenes(3), codec="mjpeg", options={"strict": "-1"}))
    assert develop(developer, packets[:1]) == 1
    assert develop(developer, [damaged(packets[1])]) == 1
    assert develop(developer, [damaged(packets[2])]) == 1
    assert developer.failures == 2
    assert developer.failing_since_s is not None


def test_a_key_frame_in_two_packets_is_one_picture(tmp_path: Path) -> None:
    """The second half has parameter sets of its own before it, as GStreamer sends it."""
    options = {"tune": "zerolatency", "x264-params": "slices=2:repeat-headers=1:annexb=1", "g": "10"}
    developer, packets = read(film(tmp_path / "film.h264", scenes(2), options=options))
    whole = bytes(packets[0].packet)
    second = whole.rindex(b"\0\0\1\x65")
    halves = [av.Packet(part) for part in (whole[:second], whole[second:])]
    for half in halves:
        half.pts, half.time_base, half.is_keyframe = 7, packets[0].packet.time_base, True
    one = joined(*halves)
    assert (bytes(one), one.pts, one.is_keyframe) == (whole, 7, True)
    assert develop(developer, [Arrived(halves[0], 1, 1.0, True, 1)]) == 0  # the second had not come yet
    assert develop(developer, [Arrived(one, 2, 2.0, True, 1)]) == 2


# ---- shrinking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"),
    [(None, (720, 576)), (0, (720, 576)), (16 / 15, (768, 576)), (0.5, (720, 1152)), (99, (720, 576))],
)
def test_pixels_become_square(shape: float | None, size: tuple[int, int]) -> None:
    fraction = None if shape is None else Fraction(shape).limit_denominator(100)
    assert square_pixels(720, 576, fraction) == size


def test_rows_have_no_padding_in_them() -> None:
    picture = scenes(1)[0].resize((333, 77))
    frame = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
    made = Scaler(512).picture(frame, None)
    assert (made.width_px, made.height_px) == (333, 77)
    assert made.pixels == picture.tobytes()
    assert len(made.thumbnail) == 1024
