"""The memory watchdog within a real MemoryMax=, in a real systemd. The proofs are in inside_memory.py."""

from __future__ import annotations

import pytest

from tests.systemd.inside_memory import PROOFS
from tests.systemd.test_service import LONGEST_S, said_inside

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(LONGEST_S + 60)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return said_inside("tests.systemd.inside_memory")


@pytest.mark.parametrize("name", [proof.__name__ for proof in PROOFS])
def test_proof(said: list[str], name: str) -> None:
    if name == PROOFS[0].__name__:
        print(*(line for line in said if line.startswith("  ")), sep="\n")
    assert any(line.startswith(f"ok {name} ") for line in said), "\n".join(said)
