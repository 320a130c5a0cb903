"""How many commands are taken in a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.token_bucket import TokenBucket


def test_so_many_at_once_and_then_one_by_one() -> None:
    bucket = TokenBucket(burst=3, per_minute=6)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) == 10.0
    assert bucket.take(105.0) == 5.0
    assert bucket.take(110.0) == 0.0
    assert bucket.take(110.0) == 10.0


def test_a_pause_fills_it_to_the_brim_and_no_further() -> None:
    bucket = TokenBucket(burst=2, per_minute=60)
    taken = [bucket.take(now_s) for now_s in (0.0, 0.0, 1e6, 1e6, 1e6)]
    assert taken == [0.0, 0.0, 0.0, 0.0, 1.0]


@given(st.integers(1, 5), st.integers(1, 600), st.lists(st.floats(0, 100), max_size=40))
def test_never_more_than_promised(burst: int, per_minute: int, waits_s: list[float]) -> None:
    bucket, now_s, taken = TokenBucket(burst, per_minute), 0.0, 0
    for wait_s in waits_s:
        now_s += wait_s
        taken += bucket.take(now_s) == 0.0
        assert taken <= burst + now_s * per_minute / 60 + 1e-6


@given(st.integers(1, 600), st.floats(0, 1e6))
def test_who_waits_as_told_is_served(per_minute: int, now_s: float) -> None:
    bucket = TokenBucket(1, per_minute)
    assert bucket.take(now_s) == 0.0
    assert bucket.take(now_s + bucket.take(now_s) + 1e-6) == 0.0


def test_time_does_not_run_backwards() -> None:
    bucket = TokenBucket(1, 60)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) == 1.0
    assert bucket.take(51.0) == 0.0
