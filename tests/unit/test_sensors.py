"""What is read from /sys: from files like a Raspberry Pi's, and from whatever else may lie there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_daemon.sensors import ASK_AGAIN_S, Sensors, system_dir
from edge_daemon.thermal import Reading
from tests.boards import Board
from tests.clock import Clock

NO_COMMAND = "no-such-command"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "sys")


def read(board: Board, command: str = NO_COMMAND) -> Reading:
    return Sensors(board.directory, command).read()


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_that_says_nothing(board: Board) -> None:
    assert read(board) == Reading(None, None, None, "")


@pytest.mark.parametrize("soc", ["soc", "soc@107c000000"], ids=["Raspberry Pi 4", "Raspberry Pi 5"])
def test_a_raspberry_pi(tmp_path: Path, soc: str) -> None:
    board = Board(tmp_path / "sys", soc)
    board.temperature(61.322)
    board.alarm(under_voltage=False)
    board.throttled(0x8)
    assert read(board) == Reading(61.322, 0x8, False, "cpu-thermal, rpi_volt, get_throttled")
    board.alarm(under_voltage=True)
    board.throttled(0x50005)
    assert read(board) == Reading(61.322, 0x50005, True, "cpu-thermal, rpi_volt, get_throttled")


def test_the_file_that_the_kernel_warns_of_is_left_alone_while_the_board_is_well(board: Board) -> None:
    board.temperature(45)
    board.alarm(under_voltage=False)
    board.throttled(0xF)
    assert read(board).throttled == 0
    board.alarm(under_voltage=True)
    assert read(board).throttled == 0xF


def test_a_board_that_hides_its_temperature_may_be_hot(board: Board) -> None:
    board.alarm(under_voltage=False)
    board.throttled(0x4)
    assert read(board) == Reading(None, 0x4, False, "rpi_volt, get_throttled")


def test_voltage_that_was_too_low_a_moment_ago_counts_though_the_firmware_has_forgotten_it(board: Board) -> None:
    board.alarm(under_voltage=True)
    board.throttled(0)
    assert read(board).under_voltage


def test_the_alarm_of_another_device_is_none_of_ours(board: Board) -> None:
    board.alarm(under_voltage=True)
    (board.directory / "class/hwmon/hwmon1/name").write_text("pmbus\n")
    assert read(board) == Reading()


def test_voltage_alone(board: Board) -> None:
    """As on a kernel that is not the Raspberry Pi's own."""
    board.alarm(under_voltage=True)
    assert read(board) == Reading(None, None, True, "rpi_volt")


@pytest.mark.parametrize("kind", ["cpu-thermal", "cpu_thermal", "soc-thermal", "bigcore0-thermal", "CPU-therm"])
def test_processors_of_other_boards_are_known(board: Board, kind: str) -> None:
    board.temperature(90, "gpu-thermal", 0)
    board.temperature(71, kind, 1)
    board.temperature(64, "littlecore-thermal", 2)
    assert read(board) == Reading(71.0, None, None, kind)


@pytest.mark.parametrize("kind", ["x86_pkg_temp", "acpitz", "gpu-thermal", "soc_dts0", "battery"])
def test_what_is_no_boards_processor_does_not_count(board: Board, kind: str) -> None:
    board.temperature(95, kind)
    assert read(board) == Reading()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=80))
def test_nonsense_is_nothing(board: Board, nonsense: bytes) -> None:
    board.temperature(61)
    board.alarm(under_voltage=False)
    board.throttled(0)
    for path in board.directory.rglob("*"):
        if path.name in ("temp", "in0_lcrit_alarm", "get_throttled"):
            path.write_bytes(nonsense)
    reading = read(board)
    assert reading.temperature_c is None or -60 <= reading.temperature_c <= 150
    assert reading.throttled is None or 0 <= reading.throttled <= 0xFFFFFFFF


def test_the_command_is_the_last_choice(board: Board, tmp_path: Path) -> None:
    command = script(tmp_path, 'echo "$@" >> "$0.asked"; echo throttled=0x50005')
    assert read(board, command) == Reading(None, 0x50005, True, "vcgencmd")
    assert Path(f"{command}.asked").read_text() == "get_throttled\n"
    board.throttled(0)
    assert read(board, command).source == "get_throttled"


@pytest.mark.parametrize(
    "text",
    ["echo VCHI initialization failed; exit 255", "echo nonsense", "printf 'throttled=0x\\377'", "exec sleep 60"],
    ids=["no rights", "nonsense", "no text", "it hangs"],
)
def test_a_command_that_does_not_work_is_asked_once_in_a_while(
    board: Board, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_daemon.sensors.COMMAND_DEADLINE_S", 0.5)
    command = script(tmp_path, f'echo asked >> "$0.asked"; {text}')
    clock = Clock()
    sensors = Sensors(board.directory, command, clock)
    assert sensors.read() == sensors.read() == Reading()
    assert Path(f"{command}.asked").read_text() == "asked\n"
    clock.advance(ASK_AGAIN_S)
    script(tmp_path, "echo throttled=0x4")
    assert sensors.read() == sensors.read() == Reading(None, 4, False, "vcgencmd")


def test_where_sys_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_DAEMON_SYS_DIR", raising=False)
    assert system_dir() == Path("/sys")
    monkeypatch.setenv("EDGE_DAEMON_SYS_DIR", "/host/sys")
    assert system_dir() == Path("/host/sys")
