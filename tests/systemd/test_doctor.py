"""What the doctor says of the unit, in a real systemd. The proofs are in inside_doctor.py."""

from __future__ import annotations

import pytest

from tests.systemd.inside_doctor import PROOFS
from tests.systemd.test_service import said_inside

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return said_inside("tests.systemd.inside_doctor")


@pytest.mark.parametrize("name", [proof.__name__ for proof in PROOFS])
def test_proof(said: list[str], name: str) -> None:
    assert any(line.startswith(f"ok {name} ") for line in said), "\n".join(said)
