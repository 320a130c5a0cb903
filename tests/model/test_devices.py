"""Where the model runs and in which precision: the decision, and short floats on the CPU. No accelerator was here."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_daemon.choices import KvPrecision, WantedDevice, WantedPrecision
from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import CaptionError, UnavailableError
from edge_daemon.moondream import quantize
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.cpu import cpuinfo_here
from edge_daemon.moondream.device import (
    Choice,
    Machine,
    Room,
    choose,
    decide,
    dtype_of,
    for_graphs,
    native_precisions,
    this_machine,
)
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.opening import open_chosen
from edge_daemon.units import MIB
from tests.model.checkpoints import modules_of

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]

NOTHING = Machine(cuda=False, cuda_bfloat16=False, mps=False, native=frozenset())
NVIDIA = Machine(cuda=True, cuda_bfloat16=True, mps=False, native=frozenset())
OLD_NVIDIA = Machine(cuda=True, cuda_bfloat16=False, mps=False, native=frozenset())
APPLE = Machine(cuda=False, cuda_bfloat16=False, mps=True, native=frozenset({"float16"}))
BOTH = Machine(cuda=True, cuda_bfloat16=True, mps=True, native=frozenset())
XEON = Machine(cuda=False, cuda_bfloat16=False, mps=False, native=frozenset({"bfloat16", "float16"}))

CORE = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x{variant}
CPU part\t: 0x{part}
CPU revision\t: {revision}

"""
PI_4_FEATURES = "fp asimd evtstrm crc32 cpuid"
PI_5_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PI_4 = "".join(CORE.format(number=n, features=PI_4_FEATURES, variant=0, part="d08", revision=3) for n in range(4))
PI_4 += "Revision\t: d03115\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n"
PI_5 = "".join(CORE.format(number=n, features=PI_5_FEATURES, variant=4, part="d0b", revision=1) for n in range(4))
PI_5 += "Hardware\t: BCM2835\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
"""As published by their owners: fastfetch issue 1529 and arm-socs-table issue 96 on GitHub."""
PI_4_32_BIT = "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32\n"
NEWER_ARM = f"Features\t: {PI_5_FEATURES} sve i8mm bf16\n"
ZEN_4 = "flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 avx512_vnni\n" * 2
SAPPHIRE_RAPIDS = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n" * 2
HASWELL = "flags\t\t: fpu sse4_2 fma f16c avx2\n" * 2


# -- what the processor can


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        (PI_4, set()),
        (PI_5, {"float16"}),
        (PI_4_32_BIT, set()),
        (NEWER_ARM, {"bfloat16", "float16"}),
        (f"{NEWER_ARM}\n{PI_5}", {"float16"}),  # the small cores lack it
        (ZEN_4, {"bfloat16"}),
        (SAPPHIRE_RAPIDS, {"bfloat16", "float16"}),
        (HASWELL, set()),  # f16c only converts
        ("model name\t: bf16 asimdhp\n", set()),
        ("", set()),
    ],
    ids=["Pi 4", "Pi 5", "Pi 4, 32 bit", "newer ARM", "big and small", "Zen 4", "Sapphire Rapids", "Haswell", "-", ""],
)
def test_what_the_processor_computes_with(cpuinfo: str, native: set[str]) -> None:
    assert native_precisions(cpuinfo) == native


def test_this_machine_is_read() -> None:
    text = cpuinfo_here()
    machine = this_machine()
    assert machine.native == native_precisions(text)
    assert ("bfloat16" in machine.native) == bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text))
    assert machine.cuda == torch.cuda.is_available()


# -- the decision


@pytest.mark.parametrize(
    ("machine", "device", "precision", "because"),
    [
        (NOTHING, "cpu", "float32", "no accelerator"),
        (NVIDIA, "cuda", "bfloat16", "CUDA"),
        (OLD_NVIDIA, "cuda", "float16", "has no bfloat16"),
        (APPLE, "mps", "float16", "MPS"),
        (BOTH, "cuda", "bfloat16", "CUDA"),
        (XEON, "cpu", "float32", "no accelerator"),
    ],
)
def test_auto_takes_the_best_device_and_what_fits_it(
    machine: Machine, device: str, precision: str, because: str
) -> None:
    choice = choose("auto", "auto", machine)
    assert (choice.device, choice.precision, choice.warning) == (device, precision, "")
    assert because in choice.reason
    assert "asked" not in choice.reason


@pytest.mark.parametrize("machine", [NOTHING, NVIDIA, OLD_NVIDIA, APPLE, BOTH, XEON])
def test_on_the_cpu_auto_is_float32_where_memory_does_not_matter(machine: Machine) -> None:
    choice = choose("cpu", "auto", machine)
    assert (choice.device, choice.precision, choice.warning) == ("cpu", "float32", "")
    assert "cpu was asked for" in choice.reason


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_device_that_is_not_there_is_an_error(device: WantedDevice, precision: WantedPrecision) -> None:
    with pytest.raises(UnavailableError, match=rf"device {device}: torch finds none .* auto or cpu"):
        choose(device, precision, NOTHING)


@pytest.mark.parametrize(
    ("cpuinfo", "precision", "warns"),
    [
        (PI_4, "float32", False),
        (PI_4, "bfloat16", True),
        (PI_4, "float16", True),
        (PI_5, "bfloat16", True),
        (PI_5, "float16", False),
        (ZEN_4, "bfloat16", False),
        (ZEN_4, "float16", True),
    ],
)
def test_an_emulated_precision_is_granted_with_a_warning(cpuinfo: str, precision: WantedPrecision, warns: bool) -> None:
    machine = Machine(cuda=False, cuda_bfloat16=False, mps=False, native=native_precisions(cpuinfo))
    choice = choose("auto", precision, machine)
    assert (choice.device, choice.precision) == ("cpu", precision)
    assert f"{precision} was asked for" in choice.reason
    assert bool(choice.warning) == warns
    if warns:
        assert f"no instructions for {precision} and emulates it" in choice.warning
        assert "set precision to auto" in choice.warning


def test_what_a_cpu_emulates_is_no_matter_of_an_accelerator() -> None:
    assert choose("auto", "bfloat16", NVIDIA) == Choice(
        "cuda", "bfloat16", "torch can use a CUDA device; bfloat16 was asked for"
    )
    assert choose("cpu", "bfloat16", NVIDIA).warning


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("held", ["float32", "float16", "int8"])
def test_graphs_run_on_the_cpu_as_they_are(device: WantedDevice, held: str) -> None:
    choice = for_graphs(device, "auto", held)
    assert (choice.device, choice.precision, choice.warning) == ("cpu", held, "")
    assert "ONNX Runtime" in choice.reason


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [("cuda", "auto", "device cuda"), ("mps", "auto", "device mps"), ("auto", "float32", "precision float32")],
)
def test_graphs_can_be_nothing_else(device: WantedDevice, precision: WantedPrecision, words: str) -> None:
    with pytest.raises(UnavailableError, match=rf"{words}: .*precision of its graphs, int8; set device and precision"):
        for_graphs(device, precision, "int8")


# -- float32 or int8, by the memory

PI = "the board's free memory, less a reserve"


def holding(mib: float) -> Callable[[], Room]:
    return lambda: Room(int(mib * MIB), PI, 2700 * MIB, 1200 * MIB)


@pytest.mark.parametrize(
    ("mib", "precision", "because"),
    [
        (3600, "float32", f"float32 needs 2700 MiB, the budget is 3600 MiB ({PI}): float32"),
        (2700, "float32", f"float32 needs 2700 MiB, the budget is 2700 MiB ({PI}): float32"),
        (2699, "int8", f"float32 needs 2700 MiB, the budget is 2699 MiB ({PI}): int8, which needs 1200 MiB"),
        (500, "int8", f"float32 needs 2700 MiB, the budget is 500 MiB ({PI}): int8, which needs 1200 MiB"),
    ],
)
@pytest.mark.parametrize("machine", [NOTHING, XEON])
def test_float32_where_it_fits_else_int8(machine: Machine, mib: float, precision: str, because: str) -> None:
    assert choose("auto", "auto", machine, holding(mib)) == Choice(
        "cpu", precision, f"torch finds no accelerator; {because}", or_int8=precision == "float32"
    )


def test_float32_where_there_is_no_int8() -> None:
    choice = choose("cpu", "auto", replace(NOTHING, no_int8="there are no kernels for ppc"), holding(1700))
    assert (choice.precision, choice.or_int8) == ("float32", False)
    assert choice.reason.endswith("too little, but no int8, as there are no kernels for ppc: float32")


def test_an_accelerator_does_not_ask_for_the_boards_memory() -> None:
    def never() -> Room:
        raise AssertionError("nobody should ask")

    assert choose("auto", "auto", NVIDIA, never).precision == "bfloat16"
    assert choose("auto", "auto", APPLE, never).precision == "float16"
    assert choose("cpu", "float32", NVIDIA, never).precision == "float32"
    assert choose("cpu", "int8", NVIDIA, never).precision == "int8"


@pytest.mark.parametrize(
    ("machine", "device"), [(NOTHING, "auto"), (NOTHING, "cpu"), (NVIDIA, "auto"), (APPLE, "auto")]
)
def test_int8_that_was_asked_for_runs_on_the_cpu(machine: Machine, device: WantedDevice) -> None:
    choice = choose(device, "int8", machine)
    assert (choice.device, choice.precision, choice.warning) == ("cpu", "int8", "")
    assert choice.reason.endswith("; int8 was asked for")


@pytest.mark.parametrize(("machine", "device"), [(NVIDIA, "cuda"), (APPLE, "mps")])
def test_int8_on_an_accelerator_is_refused(machine: Machine, device: WantedDevice) -> None:
    with pytest.raises(UnavailableError, match=f"precision int8: runs on the CPU only, and device {device} was asked"):
        choose(device, "int8", machine)


def test_int8_where_torch_has_none_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"^precision int8: none here; set precision to auto or float32$"):
        choose("auto", "int8", replace(NOTHING, no_int8="none here"))


@pytest.mark.parametrize(
    ("machine", "library", "there"),
    [
        ("x86_64", "onnxruntime", True),
        ("aarch64", "torch", True),
        ("aarch64", "onnxruntime", False),
        ("ppc", "", False),
    ],
)
def test_int8_is_there_with_its_library(
    machine: str, library: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PC takes torch's kernels, a small board those of ONNX Runtime."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(quantize, "find_spec", lambda name: None if name == library else name)
    if machine == "x86_64" and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch was built for another processor")
    assert (this_machine().no_int8 == "") is there
    if library == "onnxruntime" and not there:
        assert "pip install 'edge-daemon[models]'" in this_machine().no_int8


@pytest.mark.parametrize(
    ("precision", "kv_precision", "held"),
    [
        ("float32", "auto", torch.float32),
        ("float32", "float16", torch.float16),
        ("int8", "auto", torch.float16),
        ("int8", "float32", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
    ],
)
def test_a_model_is_opened_as_it_was_chosen(
    tmp_path: Path, precision: WantedPrecision, kv_precision: KvPrecision, held: torch.dtype
) -> None:
    config = load_config(MODEL_DIR)
    choice = choose("cpu", precision, this_machine())
    model = open_chosen(MODEL_DIR, config, choice, 200, kv_precision)
    assert model.parts.precision == precision
    assert model.cache.filled().dtype == held
    exact, pairs = Moondream(MODEL_DIR), []
    for path, _ in sample_pictures(tmp_path, 3, seed=21):
        picture = Image.open(path).convert("RGB")
        for each in (exact, model):
            each.encode(picture)
        pairs.append([each.caption("short", Sampling()).text for each in (exact, model)])
    assert sum(one == other for one, other in pairs) >= 2


# -- what follows from it


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_everything_has_the_chosen_precision(
    tiny: TinyFactory, noise: PictureFactory, precision: WantedPrecision, dtype: torch.dtype
) -> None:
    directory = tiny(bos_state="stored")
    config = Moondream(directory).config
    choice = decide(directory, config, "cpu", precision)
    model = Moondream(directory, 150, choice.device, dtype_of(choice, config))
    assert model.cache._kv.dtype == dtype
    assert model.cache.size_bytes == 150 * config.kv_values_per_position * dtype.itemsize
    assert {p.dtype for part in modules_of(model) for p in part.parameters()} == {dtype}
    for size in ((30, 30), (50, 45)):
        model.encode(noise(*size))
        embeddings = model.image_embeddings(noise(*size))
        assert embeddings.dtype == dtype
        answer = model.caption("normal", Sampling(6, temperature=0.7))
        assert 0 < answer.tokens <= 6
        step = model._prompt([9, 10])
        assert (step.hidden.dtype, step.logits.dtype, step.logits.device.type) == (dtype, torch.float32, "cpu")
        assert model.detect("star")
        assert model.point("star")


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)])
def test_short_floats_are_near_float32(
    tiny: TinyFactory, noise: PictureFactory, mask: str, dtype: torch.dtype, tolerance: float
) -> None:
    """bfloat16 has 8 bits and float16 11; logits have a standard deviation of about 1."""
    logits = []
    for model in (Moondream(tiny(mask=mask)), Moondream(tiny(mask=mask), dtype=dtype)):
        model.encode(noise(30, 30))
        with torch.inference_mode():
            logits.append(model._prompt([9, 10, 11]).logits)
    difference = (logits[0] - logits[1]).abs()
    assert 0 < float(difference.max()) < tolerance
    assert 0.5 < float(logits[0].std()) < 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_demo_shapes_says_mostly_the_same_in_short_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    exact, short = Moondream(MODEL_DIR), Moondream(MODEL_DIR, dtype=dtype)
    pairs = []
    for path, _ in sample_pictures(tmp_path, 10, seed=21):
        picture = Image.open(path).convert("RGB")
        for model in (exact, short):
            model.encode(picture)
        pairs.append([model.caption("short", Sampling()).text for model in (exact, short)])
    same = sum(a == b for a, b in pairs)
    print(f"\n{dtype}: {same} of {len(pairs)} captions are equal")
    assert same >= 7


def test_no_numbers_are_no_answer(tiny: TinyFactory, noise: PictureFactory) -> None:
    """As where float16 is too narrow for a model: every comparison with NaN is false, and argmax says something."""
    model = Moondream(tiny(), dtype=torch.float16)
    for block in modules_of(model)[1].blocks:  # two of them exceed 65 504, float16's largest number
        block.get_parameter("mlp.fc2.bias").fill_(60_000)
    model.encode(noise(30, 30))
    for ask in (lambda: model.caption("short", Sampling(4)), lambda: model.detect("star")):
        with pytest.raises(CaptionError, match=r"not numbers \(NaN\), computed in torch\.float16"):
            ask()


def test_float32_is_what_it_was(tiny: TinyFactory, noise: PictureFactory) -> None:
    """Said or not said: the same numbers, to the last bit, and still the mapped file."""
    embeddings = [
        model.image_embeddings(noise(50, 45)) for model in (Moondream(tiny()), Moondream(tiny(), dtype=torch.float32))
    ]
    assert torch.equal(*embeddings)
