"""The memory watchdog within a real MemoryMax=, in a real systemd. The proofs are in inside_memory.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import missing
from tests.systemd.inside_memory import PROOFS
from tests.systemd.inside_service import CHECKOUT
from tests.systemd.test_service import MOSQUITTO, RUN_IN_SYSTEMD, visible

LONGEST_S = 280

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(LONGEST_S + 60)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the run inside printed: figures, a line a proof, and the journal's last lines after a failure."""
    check = subprocess.run([RUN_IN_SYSTEMD, "--check"], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    if check.returncode:
        missing(f"what a systemd of our own needs ({check.stderr.strip()})")
    if not MOSQUITTO.exists():
        missing("Debian's mosquitto")
    argv = [str(RUN_IN_SYSTEMD), "--timeout", str(LONGEST_S), *visible(sys.prefix, sys.base_prefix), "--"]
    argv += [sys.executable, "-m", "tests.systemd.inside_memory"]
    done = subprocess.run(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", [proof.__name__ for proof in PROOFS])
def test_proof(said: list[str], name: str) -> None:
    if name == PROOFS[0].__name__:
        print(*(line for line in said if line.startswith("  ")), sep="\n")
    assert any(line.startswith(f"ok {name} ") for line in said), "\n".join(said)
