"""When a dead child is started again, and when a silent one is taken for stuck."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.restart_policy import (
    FIRST_DELAY_S,
    GOOD_TIME_S,
    LONGEST_DELAY_S,
    REMEMBERED,
    SHORTEST_SILENCE_S,
    UNKNOWN_SILENCE_S,
    Pace,
    RestartPolicy,
)
from tests.clock import Clock

LIVES = st.lists(st.tuples(st.none() | st.floats(0, 2 * GOOD_TIME_S), st.sampled_from("abc")), max_size=40)
"""Of each life: how long the child worked (None: it never said READY) and what it died of."""


def live(policy: RestartPolicy, clock: Clock, worked_s: float | None, reason: str) -> float | None:
    """One life and death."""
    if worked_s is not None:
        policy.ready(clock())
        clock.advance(worked_s)
    return policy.died(reason, clock())


def test_delays_double_up_to_five_minutes(clock: Clock) -> None:
    policy = RestartPolicy()
    delays = [live(policy, clock, 1.0, "it fell") for _ in range(12)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_good_time_earns_a_fresh_start(clock: Clock) -> None:
    policy = RestartPolicy()
    for _ in range(5):
        live(policy, clock, 1.0, "it fell")
    assert live(policy, clock, GOOD_TIME_S - 0.5, "it fell") == 32
    assert live(policy, clock, GOOD_TIME_S, "it fell") == 1
    assert live(policy, clock, None, "it fell") == 2, "a life without READY is not a good time"


def test_what_never_works_for_the_same_reason_is_hopeless(clock: Clock) -> None:
    policy = RestartPolicy()
    assert live(policy, clock, None, "SIGILL") == 1
    assert live(policy, clock, None, "SIGILL") is None


def test_another_reason_is_another_chance(clock: Clock) -> None:
    policy = RestartPolicy()
    assert [live(policy, clock, None, reason) for reason in ("a", "b", "a", "b")] == [1, 2, 4, 8]
    assert live(policy, clock, None, "b") is None


def test_what_ever_worked_is_never_hopeless(clock: Clock) -> None:
    policy = RestartPolicy()
    live(policy, clock, 0.0, "SIGKILL")
    assert None not in [live(policy, clock, None, "SIGKILL") for _ in range(100)]


def test_what_comes_again_is_hopeless_though_it_was_ready(clock: Clock) -> None:
    policy = RestartPolicy()
    policy.ready(clock())
    assert policy.died("SIGILL", clock(), comes_again=True) == 1
    policy.ready(clock())
    assert policy.died("SIGILL", clock(), comes_again=True) is None
    other = RestartPolicy()
    other.ready(clock())
    assert other.died("SIGILL", clock(), comes_again=True) == 1
    assert other.died("it fell", clock(), comes_again=True) == 2, "another reason is another chance"


def test_what_passes_is_never_hopeless(clock: Clock) -> None:
    policy = RestartPolicy()
    assert [policy.died("SIGKILL", clock(), passes=True) for _ in range(4)] == [1, 2, 4, 8]
    assert policy.died("it fell", clock()) == 16
    assert policy.died("it fell", clock()) is None


@given(LIVES)
def test_whatever_happens_the_delay_follows_from_the_deaths_since_a_good_time(
    lives: list[tuple[float | None, str]],
) -> None:
    policy, clock, deaths, ever_worked = RestartPolicy(), Clock(), 0, False
    for index, (worked_s, reason) in enumerate(lives):
        ever_worked |= worked_s is not None
        deaths = 1 if worked_s is not None and worked_s >= GOOD_TIME_S else deaths + 1
        delay_s = live(policy, clock, worked_s, reason)
        if delay_s is None:
            assert not ever_worked
            assert index
            assert lives[index - 1][1] == reason
            return
        assert delay_s == min(FIRST_DELAY_S * 2 ** (deaths - 1), LONGEST_DELAY_S)


@given(LIVES, st.floats(0, 1e9))
def test_the_clock_has_no_zero(lives: list[tuple[float | None, str]], offset_s: float) -> None:
    one, other, clock, later = RestartPolicy(), RestartPolicy(), Clock(), Clock()
    clock.now_s, later.now_s = 0.0, float(int(offset_s))
    for worked_s, reason in lives:
        whole_s = None if worked_s is None else float(int(worked_s))
        assert live(one, clock, whole_s, reason) == live(other, later, whole_s, reason)


# ---- how long a worker may be silent

SECONDS = st.floats(0, 1e5)


def test_before_anything_is_measured_a_worker_has_much_time() -> None:
    pace = Pace()
    assert pace.interval_s is None
    assert pace.silence_s == UNKNOWN_SILENCE_S == 300


def test_the_rehearsal_tells_the_pace_until_there_are_pictures() -> None:
    pace = Pace()
    pace.rehearsed(20.0, 12.5)
    assert (pace.interval_s, pace.silence_s) == (20.0, 125.0)
    pace.pictured(31.0, 13.0)
    assert (pace.interval_s, pace.silence_s) == (31.0, 130.0)


def test_a_fast_board_is_not_held_to_its_speed() -> None:
    pace = Pace()
    pace.rehearsed(0.3, 0.02)
    assert pace.silence_s == SHORTEST_SILENCE_S == 60


def test_one_slow_picture_is_forgotten() -> None:
    pace = Pace()
    pace.pictured(500.0, 400.0)
    for _ in range(REMEMBERED - 1):
        pace.pictured(10.0, 8.0)
    assert (pace.interval_s, pace.silence_s) == (10.0, 4000.0)
    pace.pictured(10.0, 8.0)
    assert (pace.interval_s, pace.silence_s) == (10.0, 80.0)


@given(st.lists(st.tuples(SECONDS, SECONDS)), st.floats(0.1, 1e4))
def test_a_configured_number_wins(pictures: list[tuple[float, float]], configured_s: float) -> None:
    pace = Pace(configured_s)
    for taken_s, silence_s in pictures:
        pace.pictured(taken_s, silence_s)
    assert pace.silence_s == configured_s


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1))
def test_what_was_borne_is_borne_again(pictures: list[tuple[float, float]]) -> None:
    pace = Pace()
    for taken_s, silence_s in pictures:
        pace.pictured(taken_s, silence_s)
        assert pace.silence_s >= max(SHORTEST_SILENCE_S, 10 * silence_s)
    last = [taken_s for taken_s, _ in pictures[-REMEMBERED:]]
    assert pace.interval_s is not None
    assert sum(taken_s < pace.interval_s for taken_s in last) <= len(last) / 2
    assert sum(taken_s > pace.interval_s for taken_s in last) <= len(last) / 2
