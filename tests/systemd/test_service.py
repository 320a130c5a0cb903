"""The unit in a real systemd: started, killed, frozen, stopped. The proofs are in inside_service.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.systemd.inside_service import CHECKOUT, PROOFS

RUN_IN_SYSTEMD = Path(__file__).with_name("run-in-systemd.sh")
MOSQUITTO = Path("/lib/systemd/system/mosquitto.service")
MODEL = "demo-shapes"
LONGEST_S = 280

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(LONGEST_S + 60)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return said_inside("tests.systemd.inside_service", MODEL)


def said_inside(module: str, *arguments: str, longest_s: int = LONGEST_S) -> list[str]:
    """What a module's run inside printed: a line a proof, and the journal's last lines after a failure."""
    check = subprocess.run([RUN_IN_SYSTEMD, "--check"], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    if check.returncode:
        missing(f"what a systemd of our own needs ({check.stderr.strip()})")
    if not MOSQUITTO.exists():
        missing("Debian's mosquitto")
    argv = [str(RUN_IN_SYSTEMD), "--timeout", str(longest_s), *visible(sys.prefix, sys.base_prefix), "--"]
    argv += [sys.executable, "-m", module, *arguments]
    done = subprocess.run(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.splitlines()


def visible(*directories: str) -> list[str]:
    """Options that bring in what is on another file system than / (the checkout is brought in anyway)."""
    elsewhere = [name for name in directories if Path(name).stat().st_dev != Path("/").stat().st_dev]
    return [part for name in elsewhere for part in ("--ro", name)]


@pytest.mark.parametrize("name", [proof.__name__ for proof in PROOFS])
def test_proof(said: list[str], name: str) -> None:
    assert any(line.startswith(f"ok {name} ") for line in said), "\n".join(said)
