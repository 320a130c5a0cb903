"""The unit against systemd's own checks, and its numbers against those of the daemon that it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from edge_daemon import (
    capture,
    child,
    cli,
    config,
    daemon,
    exit_codes,
    grabber,
    restart_policy,
    subcommand,
    visit,
    worker,
)
from tests.conftest import missing

UNIT = Path(__file__).parents[2] / "systemd/edge-daemon.service"
PROGRAM = "/opt/edge-daemon/current/bin/edge-daemon"
MODEL = config.ModelConfig()
MOST_EXPOSED = 20
"""Of 100; without any hardening the unit would have 96."""


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """The values of every key, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if not line.startswith(("#", "[")) and line:
            key, value = line.split("=", 1)
            found[key].append(value)
    return found


def seconds(values: list[str]) -> float:
    """A time such as `90` or `15min`."""
    (value,) = values
    match = re.fullmatch(r"(\d+)(|s|min)", value)
    assert match, f"not a time that this test knows: {value}"
    return float(match[1]) * (60 if match[2] == "min" else 1)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze`; it needs no running systemd."""
    if not shutil.which("systemd-analyze"):
        missing("systemd")
    argv = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)


def verify(text: str, directory: Path) -> str:
    """What systemd says about a unit whose program is the one of this checkout.

    It ends with 0 for unknown keys and bad values: only its words tell.
    """
    installed = directory / UNIT.name
    installed.write_text(text.replace(PROGRAM, f"{sys.prefix}/bin/edge-daemon"), encoding="utf-8")
    return analyze("verify", "--man=no", str(installed)).stdout


def test_systemd_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert verify(text, tmp_path) == ""
    assert "Watchdog" in verify(text.replace("WatchdogSec=", "WatchdogSeconds="), tmp_path)


def test_it_exposes_little() -> None:
    result = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(UNIT))
    assert result.returncode == 0, result.stdout


def test_its_command_is_one_that_the_program_knows(unit: dict[str, list[str]]) -> None:
    program, *arguments = unit["ExecStart"][0].split()
    assert program == PROGRAM
    parsed = cli.parser().parse_args(arguments)
    assert (parsed.command, parsed.config) == (cli.run, subcommand.DEFAULT_CONFIG)


def test_its_state_directory_is_the_daemons(unit: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_DAEMON_STATE_DIR", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    assert [str(config.default_state_dir())] == [f"/var/lib/{name}" for name in unit["StateDirectory"]]


def test_a_stop_has_time_for_all_graces(unit: dict[str, list[str]]) -> None:
    in_flight_s = MODEL.stop_grace_s
    worker_s = MODEL.stop_grace_s + child.REAP_S
    grabber_s = capture.STOP_GRACE_S + child.REAP_S
    broker_s = daemon.DRAIN_S + 3 * visit.CONFIRM_S
    assert seconds(unit["TimeoutStopSec"]) > in_flight_s + worker_s + grabber_s + broker_s


def test_a_start_has_time_for_the_daemon_to_give_up_by_itself(unit: dict[str, list[str]]) -> None:
    tries = restart_policy.HOPELESS_DEATHS
    longest_s = tries * (MODEL.start_timeout_s + child.REAP_S + restart_policy.FIRST_DELAY_S) + daemon.DRAIN_S
    assert seconds(unit["TimeoutStartSec"]) > longest_s


def test_the_watchdog_is_fed_several_times_before_it_bites(unit: dict[str, list[str]]) -> None:
    assert seconds(unit["WatchdogSec"]) >= 4 * daemon.WATCH_S


def test_it_starts_again_after_everything_but_a_wrong_configuration(unit: dict[str, list[str]]) -> None:
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["RestartPreventExitStatus"] == [str(exit_codes.CONFIG)]


def test_its_children_die_before_it_and_it_lives_on(unit: dict[str, list[str]]) -> None:
    (score,) = map(int, unit["OOMScoreAdjust"])
    assert score < grabber.OOM_SCORE < worker.OOM_SCORE
    assert unit["OOMPolicy"] == ["continue"]
