"""The installed libraries against the pins of our own package. Imports none of them."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject

NAME = "edge-daemon"
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9_.-]+)==(?P<version>[^\s;]+)"
    r"(?:\s*;\s*(?P<key>platform_machine|extra)\s*(?P<operator>[!=]=)\s*[\"'](?P<value>[^\"']+)[\"'])?"
)
"""What stands in our pyproject.toml, and no more."""
LAST_ON_ARM = (2, 9)
"""torch 2.10 ends with SIGILL at its import on a Raspberry Pi 4, and later wheels are CUDA builds of several GB."""


def look(subject: Subject) -> Iterator[Finding]:
    """Every library that the service needs, and of the extras those that are there."""
    places = list(subject.places.packages)
    found = metadata.distributions(path=places) if places else metadata.distributions()
    installed: dict[str, metadata.Distribution] = {}
    for distribution in found:
        installed.setdefault(canonical(distribution.metadata["Name"] or ""), distribution)
    own = installed.get(NAME) or metadata.distribution(NAME)
    machine = platform.machine()
    wanted, extras = pins(own.requires or (), machine)
    yield from against(wanted, extras, {name: each.version for name, each in installed.items()})
    torch = installed.get("torch")
    if torch is not None:
        yield torch_build(torch.version, machine, cuda_of(Path(str(torch.locate_file("torch/version.py")))))


def pip_install(what: str) -> str:
    """The command that puts a library into the environment that we run in."""
    return f"{sys.executable} -m pip install {what}"


def torch_pin() -> str:
    """As a requirement."""
    wanted, _ = pins(metadata.requires(NAME) or (), platform.machine())
    return f"torch=={wanted['torch']}"


def canonical(name: str) -> str:
    """As names of packages are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requires: Sequence[str], machine: str) -> tuple[dict[str, str], dict[str, str]]:
    """Name → version: what is needed on this machine, and what the extras would bring."""
    wanted, extras = {}, {}
    for text in requires:
        found = PIN.match(text)
        if found is None:
            continue
        name = canonical(found["name"])
        if found["key"] == "extra":
            extras[name] = found["version"]
        elif found["key"] is None or (machine == found["value"]) == (found["operator"] == "=="):
            wanted[name] = found["version"]
    return wanted, extras


def against(wanted: dict[str, str], extras: dict[str, str], installed: dict[str, str]) -> Iterator[Finding]:
    """One finding for all that is well, and one for each library that is not."""
    present = wanted | {name: version for name, version in extras.items() if name in installed}
    right = 0
    for name, version in sorted(present.items()):
        there = installed.get(name)
        again = pip_install(f"{name}=={version}")
        if there is None:
            yield problem(
                f"packages.{name}",
                f"{name} is not installed; version {version} is needed",
                "The service cannot start without it.",
                again,
            )
        elif there.partition("+")[0] != version:
            yield warning(
                f"packages.{name}",
                f"{name} {there}; the tested version is {version}",
                "Every release of edge-daemon is tested with exactly one version of each library.",
                again,
            )
        else:
            right += 1
    yield ok("packages", f"{right} of {len(present)} libraries are exactly the tested versions")


def cuda_of(path: Path) -> str | None:
    """The CUDA that a torch was built with, from its version.py; empty for a CPU build, None when it is not told."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*(?:'([^']*)'|None)", text, re.MULTILINE)
    return None if found is None else found[1] or ""


def torch_build(version: str, machine: str, cuda: str | None) -> Finding:
    """Whether this torch can run on this kind of machine at all."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    cuda_words = f", a CUDA {cuda} build" if cuda else ", a CPU build" if cuda == "" else ""
    what = f"torch {version}{cuda_words}"
    if machine != "aarch64":
        if cuda:
            return warning(
                "torch.build",
                what,
                "It runs on the CPU as well, but takes several GB of disk. Without an NVIDIA card the CPU build from "
                "pytorch.org does the same.",
            )
        return ok("torch.build", what) if cuda is not None else skipped("torch.build", f"{what}: of unknown build")
    if numbers > LAST_ON_ARM or cuda:
        return problem(
            "torch.build",
            f"{what} on a 64-bit ARM board",
            "torch 2.10 crashes when it is imported on a Raspberry Pi 4; later wheels are CUDA builds that need "
            "several GB of NVIDIA's libraries and crash there when they compute. 2.9.1 runs on a Pi 4 and on a Pi 5.",
            pip_install("torch==2.9.1"),
        )
    return ok("torch.build", what)
