"""What a worker may have, and what it could have."""

from __future__ import annotations

from dataclasses import replace

from edge_daemon import memory
from edge_daemon.allowance import OOM_LESS, Allowance
from edge_daemon.cgroup import Level
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES, Needs
from edge_daemon.readings import Reading
from edge_daemon.restart_policy import GOOD_TIME_S
from edge_daemon.units import MIB

NEEDS = Needs(100 * MIB, 0, 300 * MIB, 0, 0, MIB, 10, 100)
"""458 MiB with the shortest cache."""
WELL = Reading(None, 2000 * MIB, None, None)
SHORT = Reading(None, RESERVE_BYTES, Level(700 * MIB, 700 * MIB), None)


def test_after_a_kill_it_is_less_for_a_while() -> None:
    allowance = Allowance(None)
    before = allowance.budget(WELL, 8000.0)
    allowance.killed(800 * MIB, NEEDS, 9000.0)
    assert allowance.budget(WELL, 9001.0).limit_bytes == int(OOM_LESS * 800 * MIB)
    assert "killed" in allowance.budget(WELL, 9001.0).reason
    assert allowance.budget(WELL, 9001.0 + GOOD_TIME_S) == before
    assert allowance.budget(SHORT, 9001.0).limit_bytes == 0, "and never more than there is"


def test_but_not_less_than_the_smallest_takes() -> None:
    allowance = Allowance(None)
    allowance.killed(460 * MIB, NEEDS, 9000.0)
    after = allowance.budget(WELL, 9001.0)
    assert (after.limit_bytes, NEEDS.least_bytes) == (466 * MIB, 458 * MIB)
    memory.fit(after, replace(NEEDS, runtime_bytes=NEEDS.runtime_bytes + MIB))  # the program of the next one is larger


def test_what_others_have_may_come_back() -> None:
    assert Allowance(None).budget(SHORT, 0.0).limit_bytes == 0
    assert Allowance(None).most_bytes(SHORT, 4000 * MIB, 20 * MIB) == 680 * MIB - CGROUP_RESERVE_BYTES


def test_what_the_owner_does_not_allow_will_not() -> None:
    assert Allowance(457 * MIB).most_bytes(WELL, 4000 * MIB, 0) == 457 * MIB
