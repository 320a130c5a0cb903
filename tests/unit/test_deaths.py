"""What a worker died of: the kernel's counters and the last reading, in words for who owns the board."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from edge_daemon.cgroup import Level
from edge_daemon.child import exit_in_words
from edge_daemon.deaths import Witness
from edge_daemon.readings import Files, Reading
from edge_daemon.units import MIB

LAST = Reading(1950 * MIB, 40 * MIB, Level(2000 * MIB, 1990 * MIB), None)
ROOMY = Reading(1950 * MIB, 900 * MIB, None, None)


def said(number: signal.Signals) -> str:
    """As the daemon says it before anybody has looked further."""
    return f"the worker {exit_in_words(-number)}"


def count(proc: Path, kills: int) -> None:
    (proc / "vmstat").write_text(f"pgfault 1\noom_kill {kills}\n")


def explained(proc: Path, last: Reading | None, before: int | None, after: int | None) -> str:
    """Of a SIGKILL, with the kernel's counter before and after."""
    if before is not None:
        count(proc, before)
    witness = Witness(Files(proc, proc))
    witness.begin()
    if last:
        witness.note(last)
    if after is not None:
        count(proc, after)
    return witness.explain(said(signal.SIGKILL), -signal.SIGKILL)


def test_the_kernel_was_out_of_memory(tmp_path: Path) -> None:
    assert explained(tmp_path, LAST, 3, 4) == (
        "the worker was ended by SIGKILL: the kernel was out of memory (the worker used 1950 MiB, the board 40, "
        "its cgroup 10 of 2000 left)"
    )


def test_what_was_killed_earlier_was_not_this_worker(tmp_path: Path) -> None:
    count(tmp_path, 3)
    witness = Witness(Files(tmp_path, tmp_path))
    witness.begin()
    count(tmp_path, 4)
    witness.note(ROOMY)
    assert witness.killed_by_kernel(-signal.SIGKILL), "it may have looked alive while it was killed"
    witness.note(ROOMY)
    assert witness.killed_by_kernel(-signal.SIGKILL) is False
    witness.note(Reading(None, 9, None, None))
    count(tmp_path, 5)
    witness.note(Reading(None, 9, None, None))
    assert witness.killed_by_kernel(-signal.SIGKILL)


def test_somebody_else_did_it(tmp_path: Path) -> None:
    assert explained(tmp_path, ROOMY, 3, 3) == (
        "the worker was ended by SIGKILL, not by the kernel, whose count of processes killed for memory has not risen"
    )
    assert explained(tmp_path, LAST, 3, 3).endswith(
        "has not risen (the worker used 1950 MiB, the board 40, its cgroup 10 of 2000 left: perhaps by a program that "
        "watches memory)"
    )


def test_nobody_counts(tmp_path: Path) -> None:
    assert explained(tmp_path, ROOMY, None, None) == (
        "the worker was ended by SIGKILL (perhaps out of memory) (the worker used 1950 MiB, the board 900)"
    )
    assert explained(tmp_path, None, None, None) == "the worker was ended by SIGKILL (perhaps out of memory)"


def test_what_was_read_without_a_worker_is_no_testimony(tmp_path: Path) -> None:
    witness = Witness(Files(tmp_path, tmp_path))
    witness.note(LAST)
    witness.note(Reading(None, 9, None, None))
    assert witness.last == LAST
    witness.begin()
    assert witness.last is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, "the processor of this board (Raspberry Pi 4 Model B) lacks an instruction"),
        (signal.SIGILL, "pip install torch==2.9.1"),
        (signal.SIGSEGV, "edge-daemon model verify"),
        (signal.SIGBUS, "errors of the SD card"),
        (signal.SIGABRT, "usually because memory ran out"),
    ],
)
def test_what_to_do(tmp_path: Path, number: signal.Signals, words: str) -> None:
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree/model").write_bytes(b"Raspberry Pi 4 Model B\0")
    explanation = Witness(Files(tmp_path, tmp_path)).explain(said(number), -number)
    assert explanation.startswith(said(number))
    assert words in explanation


@pytest.mark.parametrize("returncode", [None, 0, 1, -signal.SIGTERM, -(signal.SIGRTMIN + 3)])
def test_other_ends_are_told_as_they_are(tmp_path: Path, returncode: int | None) -> None:
    count(tmp_path, 1)
    witness = Witness(Files(tmp_path, tmp_path))
    witness.begin()
    count(tmp_path, 2)
    assert witness.explain("it ended", returncode) == "it ended"
    assert witness.killed_by_kernel(returncode) is False
