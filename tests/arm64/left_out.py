"""Which tests mean nothing in emulation, or would take hours, and why. `-p tests.arm64.left_out` leaves them out.

Knows nothing of boards. What it leaves out is in pytest's summary.
"""

from __future__ import annotations

import pytest

SOURCE = "reads files that are the same everywhere"
HOST = "asks the kernel and its limits, which are not a Raspberry Pi's here"
EMULATOR = "qemu knows no V4L2, and holds nobody to a limit of memory"
PROCESSES = "starts processes, each of which takes half a minute in emulation; the kernel runs them, not the processor"
LARGE = "2.5 GB of weights, or as long"
PICTURES = "150 pictures twice; tests/arm64/proof.py has eight"
FILES = "reads and writes files of models, which every processor does alike"
LEFT_OUT = {
    "tests/unit/test_arm64.py": SOURCE,
    "tests/unit/test_docs.py": SOURCE,
    "tests/unit/test_layers.py": SOURCE,
    "tests/unit/test_pins.py": SOURCE,
    "tests/unit/test_drop_in.py": SOURCE,
    "tests/unit/test_attached.py": HOST,
    "tests/unit/test_book.py": HOST,
    "tests/unit/test_readings.py": HOST,
    "tests/unit/test_doctor_state.py::test_what_is_attached": EMULATOR,
    "tests/unit/test_picture.py::test_a_picture_that_needs_too_much_memory_is_only_a_problem": EMULATOR,
    "tests/unit/test_v4l2.py::test_no_device_and_what_is_none": EMULATOR,
    "tests/unit/test_child.py": PROCESSES,
    "tests/unit/test_cli.py": PROCESSES,
    "tests/unit/test_command_source.py": PROCESSES,
    "tests/unit/test_elsewhere.py": PROCESSES,
    "tests/unit/test_logs.py": PROCESSES,
    "tests/unit/test_model_commands.py": PROCESSES,
    "tests/unit/test_pipe.py": PROCESSES,
    "tests/model/test_bench.py": LARGE,
    "tests/model/test_checkpoint.py": FILES,
    "tests/model/test_container.py": FILES,
    "tests/model/test_demo_shapes.py": LARGE,
    "tests/model/test_devices.py::test_demo_shapes": LARGE,
    "tests/model/test_export.py": FILES,
    "tests/model/test_importing.py": FILES,
    "tests/model/test_moonfile.py": FILES,
    "tests/model/test_peer.py": LARGE,
    "tests/model/test_proof.py": FILES,
    "tests/model/test_quantize.py::test_the_demo_says_the_same_in_int8": PICTURES,
    "tests/model/test_recover.py": FILES,
    "tests/model/test_tensor_file.py": FILES,
    "tests/model/test_unrounded.py": FILES,
}
"""By what the test's name begins with."""
FIXTURES = {"half_billion": LARGE}
"""By what it asks for, in tests/model/conftest.py."""


def why(item: pytest.Item) -> str | None:
    """Why a test is left out; None: it is run."""
    asked = next((reason for name, reason in FIXTURES.items() if name in getattr(item, "fixturenames", ())), None)
    return next((reason for start, reason in LEFT_OUT.items() if item.nodeid.startswith(start)), asked)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    out = [item for item in items if why(item) is not None]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if why(item) is None]


def pytest_report_header() -> list[str]:
    return [f"left out: {name}: {reason}" for name, reason in (LEFT_OUT | FIXTURES).items()]
