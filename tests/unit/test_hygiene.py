"""What is wrong with a camera's pictures, and that it is not told at every flash."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.hygiene import (
    BLACK_PICTURE,
    FLAT_PICTURE,
    FROZEN_PICTURE,
    FUTURE_FRAMES,
    LOOKS,
    OLD_FRAMES,
    Hygiene,
)

CELLS = 1024
GOOD = bytes(40 + cell % 150 for cell in range(CELLS))
BLACK = bytes(cell % 12 for cell in range(CELLS))
DIM = bytes(cell % 21 for cell in range(CELLS))
FAINT = bytes(149 + cell % 6 for cell in range(CELLS))
GREEN = bytes([149 + cell % 2 for cell in range(CELLS)])
NOW_S = 1.8e9


def looks(
    hygiene: Hygiene, pictures: Iterable[bytes], start_s: float = NOW_S, every_s: float = 1.0, age_s: float = 0.1
) -> list[str]:
    """One look after the other, each with bits of its own."""
    times = ((start_s + number * every_s, picture) for number, picture in enumerate(pictures))
    return [hygiene.look(picture, hash(now_s), age_s, now_s) for now_s, picture in times]


@pytest.mark.parametrize(("picture", "problem"), [(BLACK, BLACK_PICTURE), (GREEN, FLAT_PICTURE), (GOOD, "")])
def test_what_a_picture_shows(picture: bytes, problem: str) -> None:
    assert looks(Hygiene(), [picture] * 5) == [""] * (LOOKS - 1) + [problem] * (6 - LOOKS)


def test_it_is_over_when_pictures_have_been_good_for_a_while() -> None:
    hygiene = Hygiene()
    looks(hygiene, [BLACK] * 5)
    assert looks(hygiene, [GOOD] * 4, NOW_S + 10) == [BLACK_PICTURE] * (LOOKS - 1) + [""] * (5 - LOOKS)


def test_single_frames_change_nothing() -> None:
    assert not any(looks(Hygiene(), [GOOD, BLACK, BLACK, GOOD, GREEN, BLACK, GREEN] * 5))
    hygiene = Hygiene()
    looks(hygiene, [BLACK] * 5)
    assert set(looks(hygiene, [BLACK, GOOD, GOOD] * 5, NOW_S + 10)) == {BLACK_PICTURE}


@pytest.mark.parametrize(("wrong", "less_so", "problem"), [(BLACK, DIM, BLACK_PICTURE), (GREEN, FAINT, FLAT_PICTURE)])
def test_at_the_edge_it_stays_what_it_was(wrong: bytes, less_so: bytes, problem: str) -> None:
    assert not any(looks(Hygiene(), [less_so] * 9))
    hygiene = Hygiene()
    looks(hygiene, [wrong] * 5)
    assert set(looks(hygiene, [less_so] * 9, NOW_S + 10)) == {problem}


def test_a_clock_written_into_a_black_picture_does_not_hide_that_it_is_black() -> None:
    with_a_clock = bytes([250] * 10) + BLACK[10:]
    assert looks(Hygiene(), [with_a_clock] * 5)[-1] == BLACK_PICTURE


def test_the_same_bits_for_a_minute_are_frozen_and_one_other_bit_is_not() -> None:
    hygiene = Hygiene()
    told = [hygiene.look(GOOD, 77, 0.0, NOW_S + second) for second in range(64)]
    assert told == [""] * 62 + [FROZEN_PICTURE] * 2
    assert looks(hygiene, [GOOD] * 4, NOW_S + 70)[-1] == ""
    alive = Hygiene()
    assert not any(alive.look(GOOD, second // 59, 0.0, NOW_S + second) for second in range(400))


@pytest.mark.parametrize(
    ("age_s", "problem"), [(31.0, OLD_FRAMES), (29.0, ""), (-4.0, ""), (-6.0, FUTURE_FRAMES), (1.8e9, OLD_FRAMES)]
)
def test_frames_of_another_time(age_s: float, problem: str) -> None:
    assert looks(Hygiene(), [GOOD] * 5, age_s=age_s)[-1] == problem


def test_an_age_about_the_limit_does_not_flap() -> None:
    hygiene = Hygiene()
    assert looks(hygiene, [GOOD] * 5, age_s=31.0)[-1] == OLD_FRAMES
    assert looks(hygiene, [GOOD] * 5, age_s=25.0)[-1] == OLD_FRAMES
    assert looks(hygiene, [GOOD] * 5, age_s=15.0)[-1] == ""


def test_a_camera_that_is_looked_at_once_an_hour_is_told_at_the_second_look() -> None:
    assert looks(Hygiene(), [BLACK] * 3, every_s=3600.0) == ["", BLACK_PICTURE, BLACK_PICTURE]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([GOOD, BLACK, DIM, GREEN]),
            st.integers(0, 3),
            st.floats(-10, 60),
            st.floats(0, 40),
        ),
        max_size=60,
    )
)
def test_it_never_changes_twice_within_two_looks(story: list[tuple[bytes, int, float, float]]) -> None:
    hygiene, now_s, told = Hygiene(), NOW_S, [""]
    for picture, checksum, age_s, passes_s in story:
        now_s += passes_s
        told.append(hygiene.look(picture, checksum, age_s, now_s))
    changes = [number for number, (before, after) in enumerate(pairwise(told)) if before != after]
    assert all(later - earlier >= 2 for earlier, later in pairwise(changes))
