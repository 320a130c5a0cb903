"""The memory cgroup, version 1 and 2: the level with the least room, kills, and whether limits hold at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_daemon import cgroup
from edge_daemon.cgroup import Level
from edge_daemon.units import MIB

MOST = 64 << 30
SERVICE = "system.slice/edge-daemon.service"
IN_SERVICE = f"0::/{SERVICE}"
STAT = f"anon 7\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\n"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "limit_mib"),
    [
        ("0::/", {}, None),
        ("0::/", {"memory.max": str(300 * MIB)}, 300),
        (IN_SERVICE, {f"{SERVICE}/memory.max": "max"}, None),
        (
            IN_SERVICE,
            {
                "system.slice/memory.max": str(700 * MIB),
                f"{SERVICE}/memory.max": str(900 * MIB),
                "memory.max": "max",
            },
            700,
        ),
        ("0::/a/b", {"a/b/memory.max": str(1 << 60)}, None),
        ("0::/a", {"a/memory.max": "max", "a/memory.high": str(600 * MIB)}, 600),
        ("0::/a", {"a/memory.max": str(900 * MIB), "a/memory.high": str(800 * MIB)}, 800),
        ("0::/a/b", {"a/b/memory.max": str(900 * MIB), "a/b/memory.high": "max", "a/memory.high": "max"}, 900),
        ("0::/../outside", {"memory.max": str(300 * MIB)}, 300),
        ("0::/with:colon", {"with:colon/memory.max": str(200 * MIB)}, 200),
        ("3:cpu,memory:/docker/1\n2:pids:/x", {"memory/docker/1/memory.limit_in_bytes": str(400 * MIB)}, 400),
        (
            "3:memory:/a\n2:pids:/b",
            {"memory/a/memory.limit_in_bytes": str(400 * MIB), "memory/b/memory.limit_in_bytes": str(200 * MIB)},
            400,
        ),
        ("3:memory:/docker/1", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("3:memory:/docker/1", {"memory/docker/1/memory.limit_in_bytes": "-1"}, None),
        ("0::/a", {"unified/a/memory.max": str(100 * MIB), "a/memory.max": str(50 * MIB)}, 100),
        ("", {}, None),
    ],
)
def test_the_limit_is_found_up_to_the_root(
    tmp_path: Path, membership: str, files: dict[str, str], limit_mib: int | None
) -> None:
    found = cgroup.tightest(membership, written(tmp_path / "cgroup", files), MOST)
    assert found == (None if limit_mib is None else Level(limit_mib * MIB, 0))


def test_what_is_above_the_root_is_not_ours(tmp_path: Path) -> None:
    written(tmp_path, {"memory.max": "1"})
    assert cgroup.tightest("0::/a\n", tmp_path / "cgroup", MOST) is None


def test_pages_of_files_are_not_used_up(tmp_path: Path) -> None:
    """Of version 2, and of version 1, where the sums over the whole subtree have names of their own."""
    two = {"a/memory.max": str(500 * MIB), "a/memory.current": str(450 * MIB), "a/memory.stat": STAT}
    assert cgroup.tightest("0::/a", written(tmp_path / "2", two), MOST) == Level(500 * MIB, 400 * MIB)
    one = {
        "memory/a/memory.limit_in_bytes": str(500 * MIB),
        "memory/a/memory.usage_in_bytes": str(450 * MIB),
        "memory/a/memory.stat": STAT + f"total_inactive_file {60 * MIB}\ntotal_active_file {40 * MIB}",
    }
    found = cgroup.tightest("4:memory:/a", written(tmp_path / "1", one), MOST)
    assert found == Level(500 * MIB, 350 * MIB)
    assert found.room_bytes == 150 * MIB


def test_the_least_room_counts_and_not_the_least_limit(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": str(300 * MIB),
        "a/b/memory.current": str(100 * MIB),
        "a/memory.max": str(800 * MIB),
        "a/memory.high": "max",
        "a/memory.current": str(750 * MIB),
    }
    assert cgroup.tightest("0::/a/b", written(tmp_path, files), MOST) == Level(800 * MIB, 750 * MIB)


def test_what_is_taken_above_a_soft_limit_leaves_no_room(tmp_path: Path) -> None:
    """The kernel lets it happen, other than with the hard one."""
    files = {
        "a/memory.max": str(900 * MIB),
        "a/memory.high": str(500 * MIB),
        "a/memory.current": str(590 * MIB),
        "a/memory.stat": STAT,
    }
    found = cgroup.tightest("0::/a", written(tmp_path, files), MOST)
    assert found == Level(500 * MIB, 540 * MIB)
    assert found.room_bytes == 0


@pytest.mark.parametrize(
    ("membership", "files", "kills"),
    [
        ("0::/a", {"a/memory.events": "low 0\noom 9\noom_kill 3"}, 3),
        ("4:memory:/a", {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5"}, 5),
        ("0::/a", {"a/memory.events": "low 0"}, None),
        ("0::/a", {}, None),
    ],
)
def test_the_kernels_kills(tmp_path: Path, membership: str, files: dict[str, str], kills: int | None) -> None:
    assert cgroup.kills(membership, written(tmp_path, files)) == kills


@pytest.mark.parametrize(
    ("membership", "files", "controlled"),
    [
        ("0::/a", {"cgroup.controllers": "cpuset cpu io memory pids"}, True),
        ("0::/a", {"cgroup.controllers": "cpuset cpu io pids"}, False),  # Raspberry Pi OS as it comes
        ("4:memory:/a\n0::/a", {"unified/cgroup.controllers": "hugetlb"}, True),
        ("1:cpu:/\n0::/a", {"unified/cgroup.controllers": "memoryless"}, False),
        ("0::/a", {}, False),
    ],
)
def test_whether_a_limit_would_have_any_effect(
    tmp_path: Path, membership: str, files: dict[str, str], controlled: bool
) -> None:
    assert cgroup.controlled(membership, written(tmp_path, files)) is controlled


def test_pressure_is_our_cgroups_and_at_the_root_the_boards(tmp_path: Path) -> None:
    root = written(tmp_path, {"unified/a/memory.pressure": "", "unified/memory.pressure": ""})
    assert cgroup.pressure_file("4:memory:/a\n0::/a", root) == tmp_path / "unified/a/memory.pressure"
    assert cgroup.pressure_file("0::/", root) is None
    assert cgroup.pressure_file("0::/b", root) is None
