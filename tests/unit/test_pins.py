"""deploy/constraints.txt pins whatever pyproject.toml's pins bring along, and deploy/check-wheels reads both."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_daemon.deaths import ADVICE
from edge_daemon.doctor import packages

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("models", "cameras")
"""What deploy/release.sh installs."""


def direct() -> dict[str, Requirement]:
    """The pins of pyproject.toml that hold on this machine."""
    wanted = [*PROJECT["dependencies"], *(pin for extra in EXTRAS for pin in PROJECT["optional-dependencies"][extra])]
    requirements = map(Requirement, wanted)
    return {canonicalize_name(one.name): one for one in requirements if one.marker is None or one.marker.evaluate()}


def constraints() -> dict[str, str]:
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def brought_along(name: str, extras: set[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """All that a package needs, as it is installed here: name and who asks for it."""
    try:
        requirements = map(Requirement, distribution(name).requires or [])
    except PackageNotFoundError:
        return  # not on this machine; on those that have it, it is looked at
    for one in requirements:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            needed = canonicalize_name(one.name)
            if needed not in seen:
                seen.add(needed)
                yield needed, name
                yield from brought_along(needed, one.extras, seen)


def test_whatever_a_pin_brings_along_is_pinned() -> None:
    pinned = constraints()
    seen = set(direct())
    for name, one in direct().items():
        for needed, asker in brought_along(name, one.extras, seen):
            assert needed in pinned, f"{asker} needs {needed}: pin it in deploy/constraints.txt"


def test_what_is_tested_here_is_what_is_pinned() -> None:
    """Otherwise a release would be made of other versions than the tests ran with."""
    for name, version in constraints().items():
        try:
            assert distribution(name).version == version, name
        except PackageNotFoundError:
            continue


def test_nothing_is_pinned_twice() -> None:
    assert not set(direct()) & set(constraints())


def test_the_installer_says_the_same_pytorch() -> None:
    script = (ROOT / "deploy/release.sh").read_text()
    for requirement in (Requirement(pin) for pin in PROJECT["dependencies"] if pin.startswith("torch==")):
        (specifier,) = requirement.specifier
        assert f"echo {specifier.version}" in script


def test_what_is_advised_on_a_board_is_what_is_pinned_for_it() -> None:
    torch = (Requirement(pin) for pin in PROJECT["dependencies"] if pin.startswith("torch=="))
    (pin,) = (
        f"torch{one.specifier}" for one in torch if one.marker and one.marker.evaluate({"platform_machine": "aarch64"})
    )
    assert ADVICE[signal.SIGILL].endswith(f"pip install {pin}")
    found = packages.torch_build("2.13.0", "aarch64", "")
    assert (found.state, found.command) == ("problem", packages.pip_install(pin))


def test_the_wheels_for_a_raspberry_pi_are_asked_for_by_its_pins() -> None:
    code = "import runpy; print(*runpy.run_path('deploy/check-wheels')['pins']('3.13'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    asked = done.stdout.split()
    assert "torch==2.9.1" in asked
    assert not [pin for pin in asked if pin.startswith("torch==2.13")]
    assert {name for name, _ in (pin.split("==") for pin in asked)} >= {"numpy", "onnx", "sympy"}


def test_the_installer_imports_nothing_from_where_root_is(tmp_path: Path) -> None:
    (tmp_path / "venv.py").write_text("open('was-run', 'w').close()\n")
    code = f"set -euo pipefail; . {ROOT}/deploy/release.sh; usable_python"
    subprocess.run(["bash", "-c", code], cwd=tmp_path, check=False, capture_output=True)
    assert not (tmp_path / "was-run").exists()
    script = (ROOT / "deploy/release.sh").read_text()
    assert not re.findall(r'python" -[cm].*', script)
