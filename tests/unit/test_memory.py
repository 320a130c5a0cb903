"""The memory budget: the least of all limits, and the cache that it holds."""

from __future__ import annotations

from dataclasses import asdict, replace

import psutil
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_daemon import memory
from edge_daemon.cgroup import Level
from edge_daemon.errors import BudgetError
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES, SMALLEST_ANSWER_POSITIONS, Budget, Limits, Needs
from edge_daemon.units import MIB

SIZES = st.integers(0, 16 << 30)
NEEDS = st.builds(
    Needs,
    runtime_bytes=SIZES,
    vision_bytes=SIZES,
    text_bytes=SIZES,
    vision_activation_bytes=SIZES,
    text_activation_bytes=SIZES,
    bytes_per_position=st.integers(1, 1 << 20),
    prefix_positions=st.integers(1, 3000),
    max_positions=st.integers(2, 4096),
)
CASES = NEEDS.flatmap(
    lambda needs: st.tuples(
        st.sampled_from([needs, replace(needs, releases_vision=True)]), st.integers(0, 5000), st.integers(-1, 1)
    ).map(lambda drawn: (max(0, drawn[0].at(drawn[1]) + drawn[2]), needs))
)
"""A limit about where so many positions fit, kept or given back, and what is needed: any two sizes are far apart."""
HALF_BILLION = Needs(250 * MIB, 600 * MIB, 1300 * MIB, 100 * MIB, 80 * MIB, 96 * 1024, 730, 2048)
LONG_TEXT = replace(HALF_BILLION, text_activation_bytes=300 * MIB)
"""With a decoder whose work space is the larger: then giving the vision encoder back helps."""


@given(st.none() | SIZES, st.none() | st.builds(Level, SIZES, SIZES), SIZES, SIZES)
def test_the_budget_is_the_least_of_all_limits(
    configured: int | None, level: Level | None, available: int, held: int
) -> None:
    budget = memory.budget(Limits(configured, level, available, held))
    limits = [max(0, held + available - RESERVE_BYTES)]
    limits += [] if configured is None else [configured]
    if level is not None:
        others = max(0, level.used_bytes - held)
        limits.append(max(0, level.limit_bytes - others - CGROUP_RESERVE_BYTES))
    assert budget.limit_bytes == min(limits)


@given(st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 300))
def test_what_the_worker_takes_itself_changes_nothing(available_mib: int, limit_mib: int, taken_mib: int) -> None:
    """Else every picture would seem to be a lack of memory."""
    available, limit, used, taken = available_mib * MIB, limit_mib * MIB, 100 * MIB, taken_mib * MIB
    assume(taken <= available)
    before = memory.budget(Limits(None, Level(limit, used), available))
    after = memory.budget(Limits(None, Level(limit, used + taken), available - taken, worker_bytes=taken))
    assert before == after


def test_what_of_the_worker_is_swapped_out_is_no_room_in_the_cgroup() -> None:
    """Of its 300 MiB 190 are in memory, as the cgroup counts; it may still not have more than the cgroup."""
    budget = memory.budget(Limits(None, Level(200 * MIB, 195 * MIB), 4000 * MIB, worker_bytes=300 * MIB))
    assert budget.limit_bytes == 200 * MIB - CGROUP_RESERVE_BYTES


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(None, None, 4000 * MIB), "the board's free memory"),
        (Limits(500 * MIB, Level(2000 * MIB, 0), 4000 * MIB), "model.memory_limit_mib"),
        (
            Limits(3000 * MIB, Level(2000 * MIB, 50 * MIB), 4000 * MIB),
            "the cgroup's limit of 2000 MiB, less what others",
        ),
        (Limits(3000 * MIB, Level(2000 * MIB, 0), 900 * MIB), "the board's free memory"),
    ],
)
def test_the_budget_names_the_limit_that_counts(limits: Limits, reason: str) -> None:
    assert reason in memory.budget(limits).reason


@pytest.mark.parametrize(
    ("limits", "most_mib"),
    [
        (Limits(None, None, 1), 8000 - 40 - 128),
        (Limits(500 * MIB, Level(2000 * MIB, 1900 * MIB), 1), 500),
        (Limits(3000 * MIB, Level(2000 * MIB, 1900 * MIB), 1), 2000 - 40 - 64),
    ],
)
def test_what_a_worker_could_ever_have_does_not_depend_on_what_others_have_now(limits: Limits, most_mib: int) -> None:
    assert memory.most_bytes(limits, 8000 * MIB, 40 * MIB) == most_mib * MIB


@pytest.mark.parametrize("needs", [HALF_BILLION, LONG_TEXT])
def test_the_least_is_what_still_fits(needs: Needs) -> None:
    memory.fit(Budget(needs.least_bytes, "test"), needs)
    with pytest.raises(BudgetError):
        memory.fit(Budget(needs.least_bytes - 1, "test"), needs)


@given(CASES, st.none() | st.integers(2, 5000))
def test_the_cache_fits_into_the_budget_or_is_refused(case: tuple[int, Needs], wanted: int | None) -> None:
    limit, needs = case
    smallest = min(needs.prefix_positions + SMALLEST_ANSWER_POSITIONS, needs.max_positions)
    try:
        positions = memory.kv_positions(Budget(limit, "test"), needs, wanted)
    except BudgetError:
        assert needs.at(smallest) > limit
        return
    assert needs.at(positions) <= limit
    assert smallest <= positions <= needs.max_positions
    assert wanted is None or positions <= max(wanted, smallest)
    # and it is as large as it may be
    larger_is_not_wanted = wanted is not None and positions >= wanted
    assert positions == needs.max_positions or larger_is_not_wanted or needs.at(positions + 1) > limit


@given(NEEDS, SIZES)
def test_a_larger_budget_never_holds_less(needs: Needs, limit: int) -> None:
    smallest = needs.at(needs.prefix_positions + SMALLEST_ANSWER_POSITIONS)
    assume(needs.prefix_positions + SMALLEST_ANSWER_POSITIONS <= needs.max_positions)
    small, large = Budget(smallest, "test"), Budget(smallest + limit, "test")
    assert memory.kv_positions(small, needs) <= memory.kv_positions(large, needs)


def test_a_refusal_says_how_much_is_missing_and_why() -> None:
    with pytest.raises(BudgetError) as caught:
        memory.kv_positions(Budget(2000 * MIB, "model.memory_limit_mib"), HALF_BILLION)
    # 250 + 1900 + 100 MiB and 778 positions of 96 KiB (72.9 MiB), less 2000
    assert str(caught.value) == (
        "323 MiB of memory are missing: the model needs at least 2323 MiB (weights 1900, smallest KV cache 73, "
        "work space 100, program 250), the budget is 2000 MiB (model.memory_limit_mib)"
    )
    # with what it says is missing, it starts
    memory.kv_positions(Budget(2324 * MIB, "model.memory_limit_mib"), HALF_BILLION)


# ---- the vision encoder, kept or given back


def test_what_is_there_at_the_same_time() -> None:
    """Vision weights with their own work space, or the decoder's; only while they are kept with both."""
    needs = Needs(1, 100, 1000, 20, 50, 1, 1, 9)
    assert needs.at(7) == 1 + 1000 + 7 + 100 + 50
    assert replace(needs, releases_vision=True).at(7) == 1 + 1000 + 7 + max(100 + 20, 50)
    assert replace(needs, releases_vision=True, text_activation_bytes=500).at(7) == 1 + 1000 + 7 + 500


@given(NEEDS, st.integers(0, 4096))
def test_giving_back_never_takes_more(needs: Needs, positions: int) -> None:
    kept, released = needs.at(positions), replace(needs, releases_vision=True).at(positions)
    assert kept - needs.vision_bytes <= released <= kept


@given(CASES, st.none() | st.integers(2, 5000))
def test_the_vision_encoder_is_kept_wherever_it_can_be(case: tuple[int, Needs], wanted: int | None) -> None:
    limit, needs = case
    released = replace(needs, releases_vision=True)
    try:
        fit = memory.fit(Budget(limit, "test"), needs, wanted)
    except BudgetError:
        assert released.at(needs.smallest_positions) > limit
        return
    assert fit.releases_vision == (needs.at(needs.smallest_positions) > limit)
    assert (released if fit.releases_vision else needs).at(fit.positions) <= limit
    assert bool(fit.reason) == fit.releases_vision
    if not fit.tight:
        assert fit.positions >= min(wanted or needs.max_positions, needs.max_positions)
        assert not fit.releases_vision


def test_where_only_that_fits_it_is_given_back_and_told() -> None:
    # kept: 250 + 600 + 1300 + 300 and 72.9 for the cache; released: 250 + 1300 + 700 and 72.9
    fit = memory.fit(Budget(2400 * MIB, "test"), LONG_TEXT)
    assert (fit.releases_vision, fit.tight) == (True, True)
    assert fit.positions == 1600  # (2400 - 2250) MiB of 96 KiB
    assert fit.reason == (
        "the vision encoder (600 MiB) is unloaded after every picture and read again for the next; "
        "otherwise 123 MiB would be missing"
    )
    assert memory.fit(Budget(2523 * MIB, "test"), LONG_TEXT).releases_vision is False


def test_a_refusal_that_giving_back_would_not_help_does_not_speak_of_it() -> None:
    with pytest.raises(BudgetError, match="work space 100, program 250") as caught:
        memory.fit(Budget(2000 * MIB, "test"), HALF_BILLION)
    assert "unloaded" not in str(caught.value)
    with pytest.raises(BudgetError, match=r"weights 1900, of which the vision encoder is unloaded"):
        memory.fit(Budget(2000 * MIB, "test"), LONG_TEXT)


@pytest.mark.parametrize(("mib", "wanted", "tight"), [(2500, None, False), (2400, None, True), (2400, 900, False)])
def test_memory_is_tight_where_the_cache_had_to_be_cut(mib: int, wanted: int | None, tight: bool) -> None:
    """The whole context takes 250 + 1900 + 100 + 192 MiB."""
    assert memory.fit(Budget(mib * MIB, "test"), HALF_BILLION, wanted).tight is tight


def test_the_limits_of_this_machine_can_be_read() -> None:
    limits = memory.read_limits(123 * MIB)
    assert limits.configured_bytes == 123 * MIB
    assert 0 < limits.available_bytes <= psutil.virtual_memory().total
    assert limits.worker_bytes == 0


def test_needs_come_back_from_a_message_or_not_at_all() -> None:
    values = asdict(replace(HALF_BILLION, releases_vision=True))
    del values["releases_vision"]
    assert memory.needs_from(values) == HALF_BILLION
    assert memory.needs_from({}) is None
    assert memory.needs_from(values | {"more": 1}) is None
