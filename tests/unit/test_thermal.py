"""From temperature and throttle bits to pauses: bounds, hysteresis, what is said and how often."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.thermal import (
    BITS,
    HOLD_S,
    HYSTERESIS_C,
    LIMIT_AT_C,
    LONGEST_PAUSE_S,
    LOWEST_DUTY,
    RISE_PER_S,
    SLOW_DOWN_AT_C,
    THROTTLED_DUTY,
    DutyCycle,
    Reading,
)
from tests.clock import Clock

TEMPERATURES = st.floats(-20, 120)
READINGS = st.builds(
    Reading, st.none() | TEMPERATURES, st.none() | st.integers(0, 0xF000F), st.none() | st.booleans(), st.just("x")
)
EVERY_S = 5.0


def run(cycle: DutyCycle, clock: Clock, reading: Reading, seconds: float = EVERY_S) -> list[str]:
    """The same reading for so long; what was said."""
    words = []
    for _ in range(int(seconds / EVERY_S)):
        words += [news.words for news in cycle.update(reading, clock())]
        clock.advance(EVERY_S)
    return words


@pytest.mark.parametrize(
    ("celsius", "duty"),
    [(20, 1.0), (69.9, 1.0), (70, 1.0), (75, 0.6), (77.5, 0.4), (80, LOWEST_DUTY), (95, LOWEST_DUTY), (None, 1.0)],
)
def test_the_duty_falls_in_a_line_between_the_two_temperatures(celsius: float | None, duty: float) -> None:
    cycle = DutyCycle()
    cycle.update(Reading(celsius), 0.0)
    assert cycle.duty == pytest.approx(duty)


def test_the_temperatures_can_be_chosen() -> None:
    cycle = DutyCycle(slow_down_at_c=50, limit_at_c=60)
    cycle.update(Reading(55), 0.0)
    assert cycle.duty == pytest.approx(0.6)


def test_it_falls_at_once_and_rises_slowly_and_only_when_it_is_really_cooler() -> None:
    cycle, clock = DutyCycle(), Clock()
    run(cycle, clock, Reading(79))
    before = cycle.duty
    run(cycle, clock, Reading(79 - HYSTERESIS_C), 600)
    assert cycle.duty == before, "it is cooler by no more than the hysteresis"
    run(cycle, clock, Reading(79 - HYSTERESIS_C - 2))
    assert before < cycle.duty <= before + RISE_PER_S * EVERY_S
    run(cycle, clock, Reading(40), 60)
    assert cycle.duty == 1.0
    run(cycle, clock, Reading(90))
    assert cycle.duty == LOWEST_DUTY


@given(st.floats(0, HYSTERESIS_C / 2), st.floats(60, 90), st.lists(st.booleans(), min_size=50, max_size=50))
def test_a_temperature_that_trembles_makes_no_flutter(half_c: float, middle_c: float, ups: list[bool]) -> None:
    """Once the warmest has been seen, nothing moves, and there is nothing to say."""
    cycle, clock = DutyCycle(), Clock()
    run(cycle, clock, Reading(middle_c + half_c))
    settled = cycle.duty
    words = [word for up in ups for word in run(cycle, clock, Reading(middle_c + (half_c if up else -half_c)))]
    assert cycle.duty == settled
    assert words == []


@given(st.lists(READINGS, max_size=60), st.floats(0, 1e4))
def test_whatever_is_read_the_duty_and_the_pause_stay_within_their_bounds(
    readings: list[Reading], taken_s: float
) -> None:
    cycle, clock = DutyCycle(), Clock()
    for reading in readings:
        cycle.update(reading, clock())
        assert LOWEST_DUTY <= cycle.duty <= 1.0
        if (reading.throttled or 0) & 0b1111 or reading.under_voltage:
            assert cycle.duty <= THROTTLED_DUTY
        if reading.temperature_c is not None and reading.temperature_c >= LIMIT_AT_C:
            assert cycle.duty == pytest.approx(LOWEST_DUTY)
        cycle.worked(clock() - taken_s, clock())
        assert 0.0 <= cycle.rest_s(clock()) <= LONGEST_PAUSE_S
        clock.advance(EVERY_S)
    run(cycle, clock, Reading(SLOW_DOWN_AT_C - HYSTERESIS_C), 180)
    assert cycle.duty == 1.0
    assert cycle.rest_s(clock()) == 0.0


def test_the_pause_follows_from_the_last_picture_and_the_duty_of_now() -> None:
    cycle, clock = DutyCycle(), Clock()
    run(cycle, clock, Reading(75))
    cycle.worked(clock() - 12.0, clock())
    assert cycle.rest_s(clock()) == pytest.approx(8.0)  # 12 s of 20 are 0.6
    clock.advance(3.0)
    assert cycle.rest_s(clock()) == pytest.approx(5.0)
    cycle.update(Reading(90), clock())
    assert cycle.rest_s(clock()) == pytest.approx(45.0), "it has become hotter meanwhile"
    cycle.worked(clock() - 1e6, clock())
    assert cycle.rest_s(clock()) == LONGEST_PAUSE_S
    clock.advance(LONGEST_PAUSE_S)
    assert cycle.rest_s(clock()) == 0.0


def test_where_nothing_can_be_read_nothing_is_done_and_nothing_is_said() -> None:
    cycle, clock = DutyCycle(), Clock()
    assert run(cycle, clock, Reading(), 600) == []
    cycle.worked(clock() - 10.0, clock())
    assert cycle.rest_s(clock()) == 0.0
    assert cycle.document() == {
        "temperature_c": None,
        "duty": 1.0,
        "pause_s": 0.0,
        "throttled": None,
        "under_voltage": None,
        "since_boot": [],
        "source": "",
    }


def test_each_change_of_heat_is_told_once() -> None:
    cycle, clock = DutyCycle(), Clock()
    assert run(cycle, clock, Reading(65), 60) == []
    assert run(cycle, clock, Reading(72), 60) == [
        "the board is warm at 72 °C: captions pause between pictures, so that it stays below the 80 °C at which it "
        "would be slowed down"
    ]
    assert run(cycle, clock, Reading(85), 60) == []
    assert run(cycle, clock, Reading(60), 60) == ["the board has cooled down at 60 °C: no more pauses between captions"]


def test_weak_power_is_told_once_however_often_the_alarm_comes_and_goes() -> None:
    cycle, clock = DutyCycle(), Clock()
    words = []
    for number in range(200):
        words += run(cycle, clock, Reading(50, None, number % 4 == 0))
        assert cycle.duty <= THROTTLED_DUTY
    assert len(words) == 1
    assert words[0].startswith("the power supply is too weak: the board gets too little voltage")
    assert cycle.document()["under_voltage"] is True
    words = run(cycle, clock, Reading(50, None, False), HOLD_S + 60)
    assert words == [
        "the voltage has been right again for a minute",
        "the board has cooled down at 50 °C: no more pauses between captions",
    ]
    document = cycle.document()
    assert (document["under_voltage"], document["throttled"]) == (False, None)
    assert document["since_boot"] == ["under_voltage"]


@pytest.mark.parametrize("bit", [1, 2, 3])
def test_what_the_firmware_does_halves_the_work(bit: int) -> None:
    cycle, clock = DutyCycle(), Clock()
    [words] = run(cycle, clock, Reading(60, 1 << bit, False))
    assert words.startswith("the firmware slows the board down (")
    assert cycle.duty == THROTTLED_DUTY
    assert cycle.document()["throttled"] == [BITS[bit]]
    words_after = run(cycle, clock, Reading(60, 0, False), HOLD_S + 60)
    assert words_after[0] == "the firmware has not slowed the board down for a minute"
    assert cycle.duty == 1.0
    assert cycle.document()["throttled"] == []


def test_what_was_before_is_told_once_and_changes_nothing() -> None:
    cycle, clock = DutyCycle(), Clock()
    words = run(cycle, clock, Reading(50, 0x50000, False), 600)
    assert words == ["since it was switched on, the board had: too little voltage, a slowed-down processor"]
    assert cycle.duty == 1.0
    assert cycle.document()["since_boot"] == ["under_voltage", "throttled"]


def test_the_journal_knows_bad_news_from_good() -> None:
    cycle = DutyCycle()
    assert [news.level for news in cycle.update(Reading(75, 0x50005, True), 0.0)] == [logging.WARNING] * 2
    assert {news.level for news in cycle.update(Reading(40, 0, False), 1000.0)} == {logging.INFO}
