"""The memory budget: the least of all limits, and the cache that it holds."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_daemon import memory
from edge_daemon.errors import BudgetError
from edge_daemon.memory import MIB, RESERVE_BYTES, SMALLEST_ANSWER_POSITIONS, Budget, Limits, Needs

SIZES = st.integers(0, 16 << 30)
NEEDS = st.builds(
    Needs,
    runtime_bytes=SIZES,
    weights_bytes=SIZES,
    activation_bytes=SIZES,
    bytes_per_position=st.integers(1, 1 << 20),
    prefix_positions=st.integers(1, 3000),
    max_positions=st.integers(2, 4096),
)
HALF_BILLION = Needs(250 * MIB, 1900 * MIB, 100 * MIB, 96 * 1024, 730, 2048)


@given(st.none() | SIZES, st.none() | SIZES, SIZES)
def test_the_budget_is_the_least_of_all_limits(configured: int | None, cgroup: int | None, available: int) -> None:
    budget = memory.budget(Limits(configured, cgroup, available))
    limits = [max(0, available - RESERVE_BYTES)]
    limits += [] if configured is None else [configured]
    limits += [] if cgroup is None else [max(0, cgroup - RESERVE_BYTES)]
    assert budget.limit_bytes == min(limits)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(None, None, 4000 * MIB), "what the board has free"),
        (Limits(500 * MIB, 2000 * MIB, 4000 * MIB), "model.memory_limit_mib"),
        (Limits(3000 * MIB, 2000 * MIB, 4000 * MIB), "cgroup"),
        (Limits(3000 * MIB, 2000 * MIB, 900 * MIB), "what the board has free"),
    ],
)
def test_the_budget_names_the_limit_that_counts(limits: Limits, reason: str) -> None:
    assert reason in memory.budget(limits).reason


@given(SIZES, NEEDS, st.none() | st.integers(2, 5000))
def test_the_cache_fits_into_the_budget_or_is_refused(limit: int, needs: Needs, wanted: int | None) -> None:
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


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "expected_mib"),
    [
        ("0::/", {}, None),
        ("0::/", {"memory.max": str(300 * MIB)}, 300),
        ("0::/system.slice/edge-daemon.service", {"system.slice/edge-daemon.service/memory.max": "max"}, None),
        (
            "0::/system.slice/edge-daemon.service",
            {
                "system.slice/memory.max": str(700 * MIB),
                "system.slice/edge-daemon.service/memory.max": str(900 * MIB),
                "memory.max": "max",
            },
            700,
        ),
        ("0::/a/b", {"a/b/memory.max": str(1 << 60)}, None),
        ("0::/../outside", {"memory.max": str(300 * MIB)}, 300),
        ("0::/with:colon", {"with:colon/memory.max": str(200 * MIB)}, 200),
        ("3:cpu,memory:/docker/1\n2:pids:/x", {"memory/docker/1/memory.limit_in_bytes": str(400 * MIB)}, 400),
        ("3:memory:/docker/1", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_the_cgroup_limit_is_the_least_up_to_the_root(
    tmp_path: Path, membership: str, files: dict[str, str], expected_mib: int | None
) -> None:
    root = cgroup(tmp_path / "cgroup", files)
    expected = None if expected_mib is None else expected_mib * MIB
    assert memory.read_cgroup_limit(membership, root) == expected


def test_what_is_above_the_root_is_not_ours(tmp_path: Path) -> None:
    cgroup(tmp_path, {"memory.max": "1"})
    assert memory.read_cgroup_limit("0::/a\n", tmp_path / "cgroup") is None


def test_the_limits_of_this_machine_can_be_read() -> None:
    limits = memory.read_limits(123 * MIB)
    assert limits.configured_bytes == 123 * MIB
    assert 0 < limits.available_bytes <= psutil.virtual_memory().total
    assert limits.cgroup_bytes is None or 0 < limits.cgroup_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGESIZE"
    )
