"""Where the model runs and in which precision: a decision, made from what the machine has, with its reason.

What the article promised: CUDA, then MPS, then the CPU, each with the dtype that fits. What a Raspberry Pi taught
(moondream issue 134, 20 minutes a picture): a processor that has no instructions for bfloat16 or float16 emulates
them, many times slower than float32; so on a CPU none of these is ever chosen unasked. float32 is, where it fits into
the memory, and int8 where it does not.

Never run by us on an accelerator: there was none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_daemon.choices import WantedDevice, WantedPrecision
from edge_daemon.errors import UnavailableError
from edge_daemon.moondream.config import ModelConfig
from edge_daemon.moondream.cpu import cpuinfo_here, flags
from edge_daemon.moondream.footprint import precision_of
from edge_daemon.units import MIB

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "cuda", "mps"]

NATIVE = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""Names in /proc/cpuinfo of instructions that compute with it, on x86 and on aarch64 (the kernel's elf_hwcaps.rst)."""
WHY_DEVICE = {
    "cuda": "torch can use a CUDA device",
    "mps": "torch can use Apple's MPS, and no CUDA device",
    "cpu": "torch finds no accelerator",
}
WHY_PRECISION = {
    ("cuda", "bfloat16"): "bfloat16 is what fits CUDA",
    ("cuda", "float16"): "float16, because this CUDA device has no bfloat16",
    ("mps", "float16"): "float16 is what fits MPS",
    ("cpu", "float32"): "float32 is exact and fast on every CPU",
}


@dataclass(frozen=True)
class Machine:
    """What could be used."""

    cuda: bool
    cuda_bfloat16: bool
    mps: bool
    native: frozenset[str]
    """The short float types that the CPU itself computes with."""
    no_int8: str = ""
    """Why int8 is not to be had on this CPU, or nothing where it is (quantize.missing)."""


@dataclass(frozen=True)
class Room:
    """The memory that there is, and what the model takes of it in each precision with a full caption's context."""

    budget_bytes: int
    budget_reason: str
    float32_bytes: int
    int8_bytes: int


@dataclass(frozen=True)
class Choice:
    """What is used."""

    device: Device
    precision: str
    reason: str
    warning: str = ""
    """What the user asked for and will regret."""
    or_int8: bool = False
    """Whether it would be int8 with less memory."""


def choose(
    device: WantedDevice, precision: WantedPrecision, machine: Machine, room: Callable[[], Room] | None = None
) -> Choice:
    """The device and the precision that torch shall use.

    `room` is asked where the memory decides; without it there is enough. Raises UnavailableError for a device that is
    not there, and for int8 where it cannot be.
    """
    if (device == "cuda" and not machine.cuda) or (device == "mps" and not machine.mps):
        raise UnavailableError(
            f"device {device}: torch finds none on this machine; "
            f"set device to auto or cpu, or install a torch build for it"
        )
    if precision == "int8":
        return _int8(device, machine)
    found: Device = "cuda" if machine.cuda else "mps" if machine.mps else "cpu"
    used: Device = found if device == "auto" else device
    why = f"{used} was asked for" if device != "auto" else WHY_DEVICE[used]
    if precision == "auto":
        fitting, because = _fitting(used, machine, room)
        return Choice(used, fitting, f"{why}; {because}", or_int8=fitting == "float32" and not machine.no_int8)
    emulated = used == "cpu" and precision != "float32" and precision not in machine.native
    warning = (
        f"this processor has no instructions for {precision} and emulates it, many times slower than float32 "
        f"(with bfloat16 a Raspberry Pi 5 took 20 minutes a picture): set precision to auto"
        if emulated
        else ""
    )
    return Choice(used, precision, f"{why}; {precision} was asked for", warning)


def _int8(device: WantedDevice, machine: Machine) -> Choice:
    """As it was asked for: on the CPU, whatever else there is."""
    if device not in ("auto", "cpu"):
        raise UnavailableError(
            f"precision int8: runs on the CPU only, and device {device} was asked for; "
            f"set device to auto or cpu, or precision to auto"
        )
    if machine.no_int8:
        raise UnavailableError(f"precision int8: {machine.no_int8}; set precision to auto or float32")
    why = "cpu was asked for" if device == "cpu" else "int8 runs on the CPU"
    return Choice("cpu", "int8", f"{why}; int8 was asked for")


def _fitting(device: Device, machine: Machine, room: Callable[[], Room] | None) -> tuple[str, str]:
    """The precision for a device, and why."""
    if device == "cuda":
        short = "bfloat16" if machine.cuda_bfloat16 else "float16"
        return short, WHY_PRECISION[device, short]
    if device == "mps":
        return "float16", WHY_PRECISION[device, "float16"]
    if room is None:
        return "float32", WHY_PRECISION[device, "float32"]
    there = room()
    numbers = (
        f"float32 needs {there.float32_bytes / MIB:.0f} MiB, "
        f"the budget is {there.budget_bytes / MIB:.0f} MiB ({there.budget_reason})"
    )
    if there.float32_bytes <= there.budget_bytes:
        return "float32", f"{numbers}: float32"
    if machine.no_int8:
        return "float32", f"{numbers}: too little, but no int8, as {machine.no_int8}: float32"
    return "int8", f"{numbers}: int8, which needs {there.int8_bytes / MIB:.0f} MiB"


def for_graphs(device: WantedDevice, precision: WantedPrecision, held: str) -> Choice:
    """The same for an `engine: onnx`, whose graphs hold weights in the precision `held` and run on the CPU.

    Raises UnavailableError when something else is wanted.
    """
    if device not in ("auto", "cpu") or precision not in ("auto", held):
        wanted = f"device {device}" if device not in ("auto", "cpu") else f"precision {precision}"
        raise UnavailableError(
            f"{wanted}: this model is run by ONNX Runtime, on the CPU and in the precision of its graphs, {held}; "
            f"set device and precision to auto, or import the model for the torch engine"
        )
    return Choice("cpu", held, f"ONNX Runtime runs the graphs on the CPU, in the precision that they hold, {held}")


def native_precisions(cpuinfo: str) -> frozenset[str]:
    """Which of bfloat16 and float16 the processor computes with, by the text of /proc/cpuinfo."""
    return frozenset(name for name, instructions in NATIVE.items() if flags(cpuinfo) & instructions)


def this_machine() -> Machine:
    """Ask torch and the kernel."""
    import torch

    from edge_daemon.moondream import quantize

    cuda = torch.cuda.is_available()
    cuda_bfloat16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    native = native_precisions(cpuinfo_here())
    return Machine(cuda, cuda_bfloat16, torch.backends.mps.is_available(), native, quantize.missing())


def decide(
    directory: Path,
    config: ModelConfig,
    device: WantedDevice,
    precision: WantedPrecision,
    room: Callable[[], Room] | None = None,
) -> Choice:
    """Where the model in `directory` shall run here, as `choose`.

    Raises UnavailableError, and ModelError for damaged files.
    """
    if config.engine == "onnx":
        return for_graphs(device, precision, precision_of(directory, config))
    return choose(device, precision, this_machine(), room)


def dtype_of(choice: Choice, config: ModelConfig) -> torch.dtype | None:
    """What torch computes in, int8 aside; None where graphs have their own precision."""
    import torch

    if config.engine == "onnx":
        return None
    return torch.float32 if choice.precision == "int8" else getattr(torch, choice.precision)
