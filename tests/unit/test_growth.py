"""Whether a worker grows: over many pictures, and not by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.growth import RECYCLE_EVERY_S, SETTLING, WINDOW, Growth
from edge_daemon.units import MIB

FIRST = SETTLING + WINDOW


def fed(growth: Growth, *sizes_mib: float) -> Growth:
    for size in sizes_mib:
        growth.pictured(int(size * MIB))
    return growth


def test_a_leak_is_seen_when_it_matters() -> None:
    growth = fed(Growth(), *[400] * FIRST)
    assert growth.baseline_bytes == 400 * MIB
    for picture in range(1, 100):
        fed(growth, 400 + 5 * picture)
        if why := growth.recycle(0.0):
            break
    assert why == f"it grew by 65 MiB, from 400, in {FIRST + picture} pictures"
    assert picture == 13 + WINDOW // 2, "the middle one of the last five"


def test_of_a_large_worker_a_tenth() -> None:
    growth = fed(Growth(), *[2000] * FIRST, *[2190] * WINDOW)
    assert growth.recycle(0.0) == ""
    assert fed(growth, *[2210] * WINDOW).recycle(0.0)


def test_the_first_pictures_may_grow() -> None:
    assert fed(Growth(), *range(100, 100 + 50 * SETTLING, 50), *[400] * 20).grown_bytes == 0


@given(st.lists(st.floats(395, 405), min_size=FIRST, max_size=60), st.integers(0, 100), st.integers(500, 3000))
def test_one_long_answer_is_no_growth(sizes: list[float], place: int, peak: int) -> None:
    growth = Growth()
    for number, size in enumerate(sizes):
        fed(growth, peak if number == FIRST + place % len(sizes) else size)
        assert growth.recycle(0.0) == ""


def test_it_is_not_replaced_again_and_again() -> None:
    growth = fed(Growth(), *[100] * FIRST, *[300] * WINDOW)
    assert growth.recycle(1000.0)
    growth.begin()
    fed(growth, *[100] * FIRST, *[300] * WINDOW)
    assert growth.recycle(1000.0 + RECYCLE_EVERY_S - 1) == ""
    assert growth.recycle(1000.0 + RECYCLE_EVERY_S)


def test_another_worker_begins_anew() -> None:
    growth = fed(Growth(), *[100] * FIRST, *[300] * WINDOW)
    growth.begin()
    assert (growth.grown_bytes, growth.baseline_bytes) == (0.0, None)
    assert growth.recycle(0.0) == ""
    assert fed(growth, *[600] * SETTLING, *[500] * (WINDOW - 1)).baseline_bytes is None, "it finds its size first"
    assert fed(growth, 500).baseline_bytes == 500 * MIB
