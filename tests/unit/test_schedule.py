"""Hours on days of the week, over midnight and over the change of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon.schedule import DAY_MIN, DAYS, Span, covered, days_of, minute_of

EVERY_DAY = frozenset(range(7))
MONDAY = datetime(2026, 6, 1)  # noqa: DTZ001  what the clock on the wall shows


def at(day: int, time: str) -> datetime:
    return MONDAY + timedelta(days=day, minutes=minute_of(time))


@pytest.mark.parametrize(
    ("word", "days"),
    [("mon", {0}), ("Sun", {6}), ("mon-fri", {0, 1, 2, 3, 4}), ("sat-mon", {5, 6, 0}), ("tue - tue", {1})],
)
def test_days(word: str, days: set[int]) -> None:
    assert days_of(word) == days


@pytest.mark.parametrize("word", ["", "moon", "mon-", "-fri", "mon-fri-sun", "monday", "mon,tue"])
def test_what_is_no_day(word: str) -> None:
    with pytest.raises(ValueError, match="mon-fri"):
        days_of(word)


@pytest.mark.parametrize(("time", "minute"), [("00:00", 0), ("7:05", 425), ("23:59", 1439), ("24:00", 1440)])
def test_times(time: str, minute: int) -> None:
    assert minute_of(time) == minute


@pytest.mark.parametrize("time", ["", "7", "24:01", "07:60", "7:5", "-1:00", "07:00:00", "noon", "٠٧:٠٠"])
def test_what_is_no_time(time: str) -> None:
    with pytest.raises(ValueError, match="write HH:MM from 00:00 to 24:00, for example 07:00"):
        minute_of(time)


def test_a_span_has_its_first_minute_and_not_its_last() -> None:
    span = Span(days_of("mon-fri"), minute_of("07:00"), minute_of("22:00"))
    seen = {time: span.covers(at(0, time)) for time in ("06:59", "07:00", "21:59", "22:00")}
    assert seen == {"06:59": False, "07:00": True, "21:59": True, "22:00": False}
    assert not span.covers(at(5, "12:00"))


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    friday_night = Span(days_of("fri"), minute_of("22:00"), minute_of("06:00"))
    inside = [(4, "22:00"), (4, "23:59"), (5, "00:00"), (5, "05:59")]
    outside = [(3, "23:00"), (4, "05:00"), (4, "21:59"), (5, "06:00"), (5, "22:00")]
    assert all(friday_night.covers(at(*moment)) for moment in inside)
    assert not any(friday_night.covers(at(*moment)) for moment in outside)
    sunday_night = Span(days_of("sun"), minute_of("22:00"), minute_of("06:00"))
    assert sunday_night.covers(at(7, "01:00"))  # Monday


span = st.builds(
    Span, st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, DAY_MIN - 1), st.integers(1, DAY_MIN)
).filter(lambda made: made.from_min != made.to_min)


@settings(max_examples=20)
@given(span)
def test_in_a_week_it_is_covered_for_as_long_as_it_says(made: Span) -> None:
    minutes = sum(made.covers(MONDAY + timedelta(minutes=minute)) for minute in range(7 * DAY_MIN))
    length = (made.to_min - made.from_min) % DAY_MIN or DAY_MIN
    assert minutes == length * len(made.days)


@given(st.lists(span, max_size=3), st.integers(0, 7 * DAY_MIN - 1))
def test_one_of_them_is_enough(spans: list[Span], minute: int) -> None:
    local = MONDAY + timedelta(minutes=minute)
    assert covered(spans, local) == any(made.covers(local) for made in spans)


@pytest.mark.parametrize(
    ("day", "span_of", "hours"),
    [
        # 2:00 to 3:00 is left out on 29 March 2026 in Berlin, and comes twice on 25 October.
        (datetime(2026, 3, 28, 12, tzinfo=UTC), ("22:00", "06:00"), 7.0),
        (datetime(2026, 3, 28, 12, tzinfo=UTC), ("02:00", "03:00"), 0.0),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), ("22:00", "06:00"), 9.0),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), ("02:00", "03:00"), 2.0),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), ("07:00", "08:00"), 1.0),
    ],
)
def test_the_change_of_the_clocks(day: datetime, span_of: tuple[str, str], hours: float) -> None:
    night = Span(EVERY_DAY, *map(minute_of, span_of))
    moments = [day + timedelta(minutes=minute) for minute in range(24 * 60)]
    assert sum(night.covers(moment.astimezone(ZoneInfo("Europe/Berlin"))) for moment in moments) == hours * 60


def test_the_days_are_those_of_datetime() -> None:
    assert [at(day, "12:00").strftime("%a").lower() for day in range(7)] == list(DAYS)
