"""What runs the tests on ARM, as far as a second shows it: what it leaves out exists, and its boards are boards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edge_daemon.doctor.processor import features
from tests.arm64.left_out import FIXTURES, LEFT_OUT

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests/arm64"


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert f"def {test}" in (ROOT / file).read_text() if test else (ROOT / file).is_file()


@pytest.mark.parametrize("name", FIXTURES)
def test_what_is_left_out_by_fixture_exists(name: str) -> None:
    assert f"def {name}(" in (ROOT / "tests/model/conftest.py").read_text()


def test_the_boards_are_those_that_the_doctor_knows(tmp_path: Path) -> None:
    subprocess.run([HERE / "boards.sh", tmp_path], check=True)
    pi4, pi5 = (features((tmp_path / board / "cpuinfo").read_text(), "aarch64") for board in ("pi4", "pi5"))
    assert pi4.old_arm
    assert not pi5.old_arm
    assert (tmp_path / "pi4/sys/devices/system/cpu/cpu3/topology/core_id").read_text() == "3\n"


@pytest.mark.parametrize("wrong", [("--board", "pi3"), ("--python", "3.12"), ("--board",)])
def test_wrong_options_are_refused_before_anything_is_done(wrong: tuple[str, ...]) -> None:
    done = subprocess.run([HERE / "run", *wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert wrong[0] in done.stderr
    assert not done.stdout
