"""Installer, upgrade, removal and Debian package on a fresh machine: see inside_install.py and inside_package.py."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import missing
from tests.systemd import wheelhouse
from tests.systemd.inside_package import PROOFS
from tests.systemd.inside_service import CHECKOUT
from tests.systemd.test_service import said_inside

SYSTEM_PYTHON = "/usr/bin/python3"
LONGEST_S = 500
"""It takes two minutes where nothing else runs."""

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(LONGEST_S + 60)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if not shutil.which("dpkg-deb"):
        missing("dpkg-deb")
    code = "import sys, venv, ensurepip; print(sys.version_info[1])"
    minor = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if minor != str(sys.version_info[1]):
        missing(
            f"a {SYSTEM_PYTHON} with venv, of version 3.{sys.version_info[1]}, for which these libraries are built,"
        )
    made = tmp_path_factory.mktemp("wheels")
    wheelhouse.stand_ins(made)
    wheelhouse.ours(made, tmp_path_factory.mktemp("source") / "copy")
    return said_inside("tests.systemd.inside_package", str(made), longest_s=LONGEST_S)


@pytest.mark.parametrize("name", [proof.__name__ for proof in PROOFS])
def test_proof(said: list[str], name: str) -> None:
    if name == PROOFS[0].__name__:
        print(*(line for line in said if line.startswith("  ")), sep="\n")
    for line in said:
        if line.startswith(f"missing {name}: "):
            missing(line.removeprefix(f"missing {name}: "))
    assert any(line.startswith(f"ok {name} ") for line in said), "\n".join(said)


@pytest.mark.parametrize("script", ["install.sh", "upgrade.sh", "uninstall.sh", "build-deb"])
def test_a_wrong_option_is_an_error_and_help_is_help(script: str) -> None:
    program = str(CHECKOUT / "deploy" / script)
    wrong = subprocess.run([program, "--wrong"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "unknown option --wrong" in wrong.stderr) == (2, True)
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert f"deploy/{script}" in told.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    """Where it is installed: it is no part of what the tests need."""
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    deploy = CHECKOUT / "deploy"
    scripts = [*deploy.glob("*.sh"), deploy / "build-deb", *deploy.glob("deb/p*")]
    argv = ["shellcheck", "-x", "-P", ".", *map(str, scripts)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
