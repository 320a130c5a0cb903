"""What the processor can compute with, what that means for the precision, and whether torch runs on it at all."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_daemon import deaths, readings
from edge_daemon.cgroup import text_of
from edge_daemon.doctor.finding import Finding, ok, problem, warning
from edge_daemon.doctor.packages import pip_install, torch_pin
from edge_daemon.doctor.subject import Subject
from edge_daemon.moondream.cpu import DOT_PRODUCTS, flags
from edge_daemon.moondream.device import native_precisions
from edge_daemon.moondream.threads import automatic, cores_here

LSE = "atomics"
"""Of ARMv8.1: a Cortex-A76 (Pi 5) has it, a Cortex-A72 (Pi 4) has not."""
PROBE_S = 150.0
"""A cold torch on an SD card takes a Raspberry Pi 4 half a minute."""
LAST_WORDS = 300
PROBE = """\
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
a = torch.rand(300, 300)
assert torch.isfinite(a @ a).all() and abs(float((a @ torch.eye(300) - a).abs().max())) < 1e-4, "a wrong product"
torch.nn.functional.gelu(torch.nn.functional.conv2d(torch.rand(1, 3, 32, 32), torch.rand(8, 3, 3, 3)))
print(torch.__version__)
"""
"""With two threads: a library of later wheels dies only then on a Cortex-A72."""


@dataclass(frozen=True)
class Features:
    """Of all cores."""

    dot_product: bool
    float16: bool
    bfloat16: bool
    old_arm: bool
    """ARMv8.0, as a Raspberry Pi 4 and older."""


def features(cpuinfo: str, machine: str) -> Features:
    """By the text of /proc/cpuinfo."""
    known, native = flags(cpuinfo), native_precisions(cpuinfo)
    return Features(
        dot_product=bool(known & DOT_PRODUCTS),
        float16="float16" in native,
        bfloat16="bfloat16" in native,
        old_arm=machine == "aarch64" and bool(known) and LSE not in known,
    )


def look(subject: Subject) -> Iterator[Finding]:
    """Features, and the precision that is configured."""
    there = features(text_of(subject.places.proc / "cpuinfo"), platform.machine())
    yield ok("processor", in_words(there))
    if subject.config is not None:
        yield precision(subject.config.model.precision, subject.config.model.device, there)


def in_words(there: Features) -> str:
    """What it has, and what that means."""
    pairs = ((there.dot_product, "dot product"), (there.float16, "float16"), (there.bfloat16, "bfloat16"))
    has = [name for found, name in pairs if found]
    lacks = [name for found, name in pairs if not found]
    words = [f"has {', '.join(has)}"] if has else []
    words += [f"lacks {', '.join(lacks)}"] if lacks else []
    int8 = "int8 is computed with the dot product" if there.dot_product else "int8 saves memory, perhaps no time"
    old = "; ARMv8.0, as in a Raspberry Pi 4: torch up to 2.9 only" if there.old_arm else ""
    return f"{'; '.join(words)}: {int8}; float32 is exact everywhere{old}"


def precision(wanted: str, device: str, there: Features) -> Finding:
    """Whether the configured precision is a good idea here."""
    emulated = {"bfloat16": not there.bfloat16, "float16": not there.float16}.get(wanted, False)
    if emulated and device in ("auto", "cpu"):
        return warning(
            "precision",
            f"model.precision is {wanted}, which this processor only emulates",
            "On a CPU without instructions for it every caption takes many times as long as in float32 (with bfloat16 "
            "a Raspberry Pi 5 took 20 minutes a picture).",
            "set model.precision to auto",
        )
    return ok("precision", f"model.precision is {wanted}")


def probe(subject: Subject) -> Iterator[Finding]:
    """Import torch and multiply, in a process that may die of it."""
    yield probed(subject.places.proc, [sys.executable, "-P", "-c", PROBE])


def probed(proc: Path, argv: Sequence[str], deadline_s: float = PROBE_S) -> Finding:
    """What became of a process that does what the model's does first."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "0"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=deadline_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return problem(
            "torch",
            f"torch has not multiplied two matrices within {deadline_s:.0f} s",
            "A model's process would be as slow: the disk is failing, or the machine is far too busy or out of memory.",
            "sudo dmesg --level=err,warn | tail; uptime; free -h",
        )
    if done.returncode == 0:
        return ok("torch", f"torch {done.stdout.strip()} computes on this processor")
    if done.returncode < 0:
        return _killed(proc, done.returncode)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:LAST_WORDS]
    return problem(
        "torch",
        f"torch cannot be used: {last}",
        "The model's process would end in the same way.",
        pip_install(f"--force-reinstall {torch_pin()}"),
    )


def _killed(proc: Path, returncode: int) -> Finding:
    number = -returncode
    name = signal.Signals(number).name if number in [*signal.Signals] else f"signal {number}"
    witness = deaths.Witness(readings.Files(proc))
    said = f"a process that only imports torch and multiplies was ended by {name}"
    explained = witness.explain(said, returncode).removeprefix(said).lstrip(": ")
    meaning = explained or "Something killed it, perhaps because memory ran out."
    return problem("torch", said, meaning[0].upper() + meaning[1:] + ".", pip_install(torch_pin()))


def threads(subject: Subject) -> Iterator[Finding]:
    """Whether as many threads are configured as there are cores."""
    from edge_daemon.doctor import yaml_change

    if subject.config is None:
        return
    cores, wanted = cores_here(), subject.config.model.threads
    number, why = automatic(cores)
    if wanted == "auto" or wanted <= cores:
        yield ok("threads", f"{wanted if wanted != 'auto' else number} ({why if wanted == 'auto' else 'configured'})")
        return
    yield warning(
        "threads",
        f"model.threads is {wanted}, and there are {cores} cores",
        "With more threads than cores they wait for each other: captions become slower, not faster.",
        "set model.threads to auto",
        yaml_change.fix(subject.config_path, ("model", "threads"), "auto"),
    )
