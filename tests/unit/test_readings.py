"""What is read of memory: from files as the kernel writes them, and from this very machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edge_daemon import readings
from edge_daemon.readings import Files, Kills, Pressure
from edge_daemon.units import MIB

STATUS = "Name:\tpython\nVmHWM:\t  90 kB\nRssAnon:\t   1000 kB\nRssFile:\t  700 kB\nVmSwap:\t      24 kB\n"
PSI = "some avg10=1.50 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=2\n"


def test_what_nobody_can_drop() -> None:
    assert readings.anonymous_bytes(STATUS) == 1024 * 1024
    assert readings.anonymous_bytes(STATUS.replace("VmSwap", "Vm")) == 1000 * 1024
    assert readings.anonymous_bytes("Name:\tpython\nState:\tZ (zombie)\n") is None
    assert readings.anonymous_bytes("") is None


def test_pressure_is_read_or_not_there() -> None:
    assert readings.pressure_of(PSI) == Pressure(1.5, 0.25)
    assert readings.pressure_of("") is None
    assert readings.pressure_of(PSI.splitlines()[0]) is None


@pytest.mark.parametrize(
    ("before", "after", "risen"),
    [
        (Kills(1, 5), Kills(2, 6), True),
        (Kills(1, 5), Kills(1, 6), True),
        (Kills(None, 5), Kills(None, 6), True),
        (Kills(1, 5), Kills(1, 5), False),
        (Kills(None, None), Kills(None, None), None),
        (Kills(None, None), Kills(1, 1), None),
        (Kills(1, 5), Kills(None, 6), True),
        (Kills(1, 1), Kills(None, None), None),
    ],
)
def test_whether_the_kernel_killed(before: Kills, after: Kills, risen: bool | None) -> None:
    assert after.more_than(before) is risen


HOLDER = f"""
import mmap
input("still empty")
block = mmap.mmap(-1, {64 * MIB}, flags=mmap.MAP_PRIVATE)
input("mapped")
for _ in range(64):
    block.write(bytes({MIB}))
input("touched")
block.close()
input("given back")
"""


def test_what_a_process_holds_is_seen_at_once_and_what_it_maps_is_not() -> None:
    """The last reading is compared with smaps_rollup, for whose figure it stands.

    In a process of its own: what this one's allocator keeps of other tests would count as well.
    """
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        held: dict[str, int] = {}
        for stage in ("still empty", "mapped", "touched", "given back"):
            assert holder.stdout.read(len(stage)) == stage
            worker_bytes = Files().read(holder.pid).worker_bytes
            assert worker_bytes is not None
            held[stage] = worker_bytes
            if stage == "given back":
                rollup = readings.kib(Path(f"/proc/{holder.pid}/smaps_rollup").read_text(), "Pss_Anon")
                assert rollup is not None
                assert abs(held[stage] - rollup) < MIB
            print(file=holder.stdin, flush=True)
    assert held["mapped"] - held["still empty"] < MIB
    assert 63 * MIB < held["touched"] - held["mapped"] < 67 * MIB
    assert held["touched"] - held["given back"] > 63 * MIB


def test_a_process_that_has_gone_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert Files().read(child.pid).worker_bytes is None
    child.wait()
    assert Files().read(child.pid).worker_bytes is None
    assert Files().read(None).worker_bytes is None


def test_this_machine_can_be_read() -> None:
    total_bytes = psutil.virtual_memory().total
    assert 0 < Files().read(os.getpid()).available_bytes <= total_bytes
    pss_bytes = Files().pss_bytes(os.getpid())
    assert pss_bytes is not None
    assert 0 < pss_bytes < total_bytes
    assert Files().kills().on_board is not None


def test_a_board_has_a_name(tmp_path: Path) -> None:
    assert readings.board(tmp_path) == "an unknown board"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A processor @ 2 GHz\n")
    assert readings.board(tmp_path) == "A processor @ 2 GHz"
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree/model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert readings.board(tmp_path) == "Raspberry Pi 4 Model B Rev 1.4"


def test_where_there_is_nothing_to_read_nothing_is_said(tmp_path: Path) -> None:
    reading = Files(tmp_path, tmp_path).read(1)
    assert (reading.worker_bytes, reading.level, reading.pressure) == (None, None, None)
    assert Files(tmp_path, tmp_path).kills() == Kills(None, None)
    assert not Files(tmp_path, tmp_path).controlled()
