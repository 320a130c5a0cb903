"""A directory of wheels from which a release is installed in seconds: ours is real, all others lead to this checkout.

A stand-in has the name and version of a pin and no content, so that pip does everything it does on a Raspberry Pi, from
resolving to the scripts; PyTorch's has a line that puts the site-packages of the running environment on the path. What
the releases then do is done by the real libraries.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[2]
EXTRAS = ("models", "cameras")
"""As deploy/release.sh installs them."""


def pins() -> Iterator[tuple[str, str]]:
    """Name and version of all that a release has on this machine, ours excepted."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(pin for extra in EXTRAS for pin in project["optional-dependencies"][extra])]
    lines = (CHECKOUT / "deploy/constraints.txt").read_text().splitlines()
    wanted += [line for line in lines if not line.startswith("#")]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate():
            (version,) = requirement.specifier
            yield requirement.name, version.version


def site_packages() -> str:
    """Of the running environment."""
    return sysconfig.get_path("purelib")


def stand_ins(directory: Path) -> None:
    """A wheel for each pin."""
    for name, version in pins():
        project = re.sub(r"[-_.]+", "_", name)
        info = f"{project}-{version}.dist-info"
        content = {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
        content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        if name == "torch":
            content["checkout.pth"] = site_packages() + "\n"
        content[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*content, f"{info}/RECORD"))
        with zipfile.ZipFile(directory / f"{project}-{version}-py3-none-any.whl", "w") as wheel:
            for file, text in content.items():
                wheel.writestr(file, text)


def ours(directory: Path, work: Path) -> Path:
    """Our own wheel, built as for any release, from a copy: a build leaves its traces beside its source."""
    work.mkdir()
    names = ("edge_daemon", "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-r", *(str(CHECKOUT / name) for name in names), str(work)], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(directory), str(work)], check=True, timeout=120)
    (wheel,) = directory.glob("edge_daemon-*.whl")
    return wheel


def doctored(wheel: Path, directory: Path, version: str, appended: Mapping[str, str]) -> Path:
    """Our wheel as another version, with lines at the end of some of its files."""
    before = wheel.name.split("-")[1]
    made = directory / wheel.name.replace(f"-{before}-", f"-{version}-")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if ".dist-info/" in name:
                content = content.replace(f"-{before}.dist".encode(), f"-{version}.dist".encode())
                content = content.replace(f"\nVersion: {before}\n".encode(), f"\nVersion: {version}\n".encode())
            content += appended.get(name, "").encode()
            new.writestr(name.replace(f"-{before}.dist-info", f"-{version}.dist-info"), content)
    return made
