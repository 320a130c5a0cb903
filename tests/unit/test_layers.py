"""The architecture as a test: who may import whom, how large things may become, and what the daemon never loads.

Read from the source, without importing it, but for the last test: that one asks a real interpreter.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edge_daemon"

LEAVES: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "model_files": set(),
    "choices": set(),
    "exit_codes": set(),
    "picture_limits": set(),
    "units": set(),
    "wire": {"errors"},
    "messages": {"errors", "wire"},
    "notify": set(),
    "logs": set(),
    "topics": {"units"},
    "complaints": {"topics"},
    "retained": {"topics"},
    "leftovers": {"errors", "mqtt", "state_file", "topics"},
    "state_file": set(),
    "visit": {"link"},
    "answers": set(),
    "values": {"answers", "messages", "results", "source_config"},
    "nearest": set(),
    "device_classes": {"nearest"},
    "homeassistant": {"answers", "config", "source_config", "topics"},
    "token_bucket": set(),
    "command_values": {"choices", "config", "errors", "nearest", "source_config"},
    "commands": {"command_values", "errors", "nearest", "source_config", "topics"},
    "restart_policy": set(),
    "reasons": set(),
    "shown_address": set(),
    "shown_name": set(),
    "suspicion": set(),
    "dialect": {"choices"},
    "machine": set(),
    "tls": {"errors", "mqtt_config"},
    "outgoing": {"errors", "suspicion", "topics"},
    "mqtt": {
        *("complaints", "dialect", "errors", "link", "machine", "mqtt_config", "outgoing", "reasons"),
        *("retained", "subscriptions", "suspicion", "topics", "visit"),
    },
    "areas": {"messages"},
    "schedule": set(),
    "scene_change": {"messages"},
    "gate": {"gate_config", "scene_change", "schedule"},
    "hygiene": set(),
    "hangup": {"errors", "notify"},
    "progress": set(),
    "slots": set(),
    "thermal": set(),
    "sensors": {"thermal"},
    "pipe": {"messages", "wire"},
    "clock": set(),
    "book": {"clock", "messages"},
    "salvage": {"book"},
    "renewal": {"book", "salvage"},
    "rounds": {"book"},
    "outbox": {"book", "clock", "errors", "messages", "renewal", "rounds", "salvage", "units"},
    "broken_files": set(),
    "results": {"answers", "clock", "messages"},
    "jobs": {"errors", "messages", "results"},
    "reload": {"config", "source_config"},
    "repeats": {"results"},
    "settings": {"config", "errors", "state_file"},
    "discovery": {"errors", "homeassistant", "mqtt", "topics"},
    "picture": {"errors", "picture_limits", "rlimits", "sources.jpeg_stream", "units"},
    "rlimits": set(),
    "sources.picamera_rules": set(),
    "attached": set(),
    "sources.newest": {"choices"},
    "sources.frames": {"messages", "picture"},
    "sources.jpeg_stream": {"errors"},
    "sources.launcher": {"pipe"},
    "sources.command": {
        *("errors", "messages", "picture", "shown_address", "sources"),
        *("sources.frames", "sources.jpeg_stream"),
    },
    "rehearsal": {"messages", "picture_limits"},
    "wishes": {"config", "messages", "source_config", "units"},
    "demo": set(),
    "cgroup": set(),
    "memory": {"cgroup", "errors", "readings", "units"},
    "stages": {"errors", "memory", "readings", "units"},
    "allowance": {"memory", "readings", "restart_policy", "units"},
    "worker_state": {"messages"},
    "growth": {"memory", "units"},
    "deaths": {"child", "memory", "readings", "units"},
    "moondream.cpu": set(),
    "doctor.finding": {"exit_codes"},
    "doctor.screen": {"doctor.finding"},
}
"""Modules that import the standard library and these of ours (`` is the package itself)."""
LEAVES_WITH_ONE_LIBRARY: dict[str, tuple[set[str], set[str]]] = {
    "readings": ({"cgroup", "units"}, {"psutil"}),
    "yaml_file": ({"errors"}, {"yaml"}),
    "config": (
        {
            *("choices", "config_words", "errors", "mqtt_config", "sections"),
            *("source_config", "thermal", "units", "yaml_file"),
        },
        {"pydantic"},
    ),
    "source_config": (
        {
            *("answers", "choices", "device_classes", "gate_config", "picture_limits"),
            *("repeats", "sections", "shown_address", "units"),
        },
        {"pydantic"},
    ),
    "gate_config": ({"areas", "schedule", "sections", "units"}, {"pydantic"}),
    "grabber_settings": ({"picture_limits", "source_config", "units"}, {"pydantic"}),
    "config_words": ({"nearest", "yaml_file"}, {"pydantic_core"}),
    "child": ({"errors", "messages", "token_bucket", "wire"}, set()),
    "sections": (set(), {"pydantic"}),
    "mqtt_config": ({"choices", "sections"}, {"pydantic"}),
    "subscriptions": ({"link", "topics"}, {"paho"}),
    "link": ({"mqtt_config", "tls", "topics", "units"}, {"paho"}),
    "sources.picamera": (set(), {"libcamera", "numpy", "picamera2"}),
    "sources.scaling": ({"messages", "picture"}, {"av"}),
    "sources.opening": ({"rlimits"}, {"av"}),
    "sources.developing": ({"sources.newest"}, {"av"}),
    "sources.video": (
        {
            "choices",
            "messages",
            "sources",
            *(f"sources.{name}" for name in ("developing", "frames", "newest", "scaling")),
        },
        {"av"},
    ),
    "sources.stream": ({"choices", "shown_address", "sources.newest", "sources.opening"}, {"av"}),
    "sources.v4l2": ({"choices", "sources.opening"}, {"av"}),
}
"""Modules that may have one library beside these of ours."""
IMPORTERS: dict[str, set[str]] = {
    "cli": {"__main__"},
    "daemon": {"cli"},
    "doctor": {"cli"},
    "worker": set(),
    "grabber": set(),
    "moondream": {"moondream", "worker", "caption_files", "demo", "models", "needs", "bench", "doctor"},
    "paho": {"link", "subscriptions", "demo"},
    "sqlite3": {"book", "salvage", "renewal", "outbox", "doctor"},
    "yaml": {"yaml_file"},
    "pydantic": {"config", "gate_config", "grabber_settings", "mqtt_config", "sections", "source_config"},
    "torch": {"moondream", "worker", "demo", "models", "bench"},
    "onnx": {"models", "moondream"},
    "onnxruntime": {"models", "moondream"},
    "huggingface_hub": {"models"},
    "transformers": {"models"},
    "pyvips": {"decoders"},
    "watchfiles": {"sources"},
    "av": {"sources"},
    "picamera2": {"sources"},
    "libcamera": {"sources"},
    "argparse": {
        "cli",
        "model_commands",
        "source_commands",
        "unit_command",
        "subcommand",
        "worker",
        "demo",
        "bench",
        "doctor",
    },
}
"""Modules of ours and libraries that only these modules or packages may import, at the top or late."""
NEVER_IN_THE_DAEMON = (
    *("torch", "numpy", "PIL", "pyvips", "transformers", "tokenizers", "safetensors", "watchfiles"),
    *("av", "onnx", "onnxruntime", "huggingface_hub"),
)
PARENT_RSS_MIB = 60
BAD_NAMES = ("util", "common", "helper", "manager", "misc", "stuff", "base")
MAY_PRINT = {
    *("cli", "model_commands", "source_commands", "unit_command"),
    *("demo", "bench", "doctor", "grabber", "decoders"),
}
"""The commands; and the grabber, whose stderr is its log."""
FUNCTION_LINES, FILE_LINES, MAIN_LINES = 50, 400, 40
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    """Dotted, without the package: `sources.folder`."""
    path: Path
    text: str
    tree: ast.Module = field(repr=False, compare=False)

    @property
    def top(self) -> str:
        """The module or package directly below ours."""
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return self.name or "__init__"


def read() -> list[Module]:
    """All files of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Module(name, path, text, ast.parse(text)))
    return found


MODULES = read()
NAMES = {module.name for module in MODULES}
each_module = pytest.mark.parametrize("module", MODULES, ids=str)


def imports(module: Module, *, late: bool) -> set[str]:
    """What a module imports, dotted: ours as `edge_daemon.x`. With `late` also inside functions and for types only."""
    nodes = ast.walk(module.tree) if late else at_import(module.tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are written out in full"
            base = node.module or ""
            ours = {f"{base}.{alias.name}" for alias in node.names if is_ours(f"{base}.{alias.name}")}
            found |= ours or {base}
    return found


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when the module is imported."""
    for node in body:
        if isinstance(node, Function) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            continue
        yield node
        for name in ("body", "orelse", "finalbody", "handlers"):
            yield from at_import(getattr(node, name, []))


def is_ours(dotted: str) -> bool:
    package, _, rest = dotted.partition(".")
    return package == "edge_daemon" and rest in NAMES


def ours(dotted: set[str]) -> set[str]:
    """Our modules among imports, without the package's name."""
    return {name.partition(".")[2] for name in dotted if name.partition(".")[0] == "edge_daemon"}


def libraries(dotted: set[str]) -> set[str]:
    """Foreign packages among imports."""
    return {name.partition(".")[0] for name in dotted} - set(sys.stdlib_module_names) - {"edge_daemon"}


def functions(module: Module) -> Iterator[Function]:
    return (node for node in ast.walk(module.tree) if isinstance(node, Function))


def module_named(name: str) -> Module:
    return next(module for module in MODULES if module.name == name)


# ---- who imports whom -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_imports_the_standard_library_and_what_is_listed(name: str) -> None:
    imported = imports(module_named(name), late=True)
    allowed_libraries = {"systemd"} if name == "notify" else set()  # late, and optional
    assert ours(imported) <= LEAVES[name]
    assert libraries(imported) <= allowed_libraries


@pytest.mark.parametrize("name", LEAVES_WITH_ONE_LIBRARY)
def test_these_import_one_library_and_what_is_listed(name: str) -> None:
    allowed, foreign = LEAVES_WITH_ONE_LIBRARY[name]
    imported = imports(module_named(name), late=True)
    assert ours(imported) <= allowed
    assert libraries(imported) <= foreign


@pytest.mark.parametrize("name", IMPORTERS)
def test_only_these_import_it(name: str) -> None:
    def meant(dotted: str) -> bool:
        parts = dotted.split(".")
        return name in (parts[0], parts[1] if parts[0] == "edge_daemon" and len(parts) > 1 else "")

    importers = {module.top for module in MODULES if any(map(meant, imports(module, late=True)))}
    assert importers <= IMPORTERS[name] | {name}


def test_the_model_knows_nothing_of_the_daemon() -> None:
    for module in MODULES:
        if module.top == "moondream":
            foreign = {name for name in ours(imports(module, late=True)) if name.partition(".")[0] != "moondream"}
            assert foreign <= {"choices", "errors", "model_files", "units"}, module


def test_there_is_no_import_cycle() -> None:
    graph = {module.name: ours(imports(module, late=False)) - {module.name, ""} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


def test_every_module_that_is_imported_exists() -> None:
    for module in MODULES:
        for name in ours(imports(module, late=True)):
            assert name in NAMES, f"{module} imports edge_daemon.{name}"


# ---- how large, how named, how written ------------------------------------------------------------------


@each_module
def test_a_file_is_short(module: Module) -> None:
    assert len(module.text.splitlines()) <= FILE_LINES


@each_module
def test_functions_are_short(module: Module) -> None:
    for function in functions(module):
        assert function.end_lineno is not None
        limit = MAIN_LINES if function.name == "main" else FUNCTION_LINES
        lines = function.end_lineno - function.lineno + 1
        assert lines <= limit, f"{function.name} has {lines} lines"


@each_module
def test_everything_is_annotated(module: Module) -> None:
    for function in functions(module):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [a.arg for a in named if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}:{function.lineno}: {bare}"
        assert function.returns is not None, f"{function.name}:{function.lineno} has no return type"


@each_module
def test_the_module_says_what_it_does(module: Module) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring
    assert docstring.splitlines()[0].rstrip()[-1] in ".:;,", "a sentence"


@each_module
def test_names_say_what_the_thing_is(module: Module) -> None:
    classes = {node.name.lower() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
    for name in {*module.name.lower().split("."), *classes}:
        assert not any(name.startswith(bad) or name.endswith((bad, f"{bad}s")) for bad in BAD_NAMES), name


@each_module
def test_nothing_is_caught_blindly_and_nothing_is_global(module: Module) -> None:
    for node in ast.walk(module.tree):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: a bare except"


@each_module
def test_only_commands_print(module: Module) -> None:
    if module.top in MAY_PRINT:
        return
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@each_module
def test_importing_it_does_nothing(module: Module) -> None:
    """At the top stand imports, definitions and constants: no loop, no bare call, no `with`."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.Assign,
        ast.AnnAssign,
        ast.ClassDef,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
    )
    for node in module.tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and any(
            word in ast.unparse(node.test) for word in ("TYPE_CHECKING", "__name__")
        )
        assert isinstance(node, allowed) or docstring or guard, f"line {node.lineno}: {ast.unparse(node)[:80]}"


# ---- what a real interpreter loads ----------------------------------------------------------------------

MEASURE = """\
import json, sys
import edge_daemon.daemon                                 # the daemon itself
from edge_daemon import cli, config, daemon, logs, models  # what `edge-daemon run` imports
from pathlib import Path
rss_kib = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
print(json.dumps({"modules": sorted(sys.modules), "rss_kib": rss_kib}))
"""


def test_the_daemon_loads_no_torch_and_no_image_library() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=ROOT)
    report = json.loads(done.stdout)
    loaded = {name.partition(".")[0] for name in report["modules"]}
    assert not loaded & set(NEVER_IN_THE_DAEMON)
    assert {"edge_daemon.captioner", "edge_daemon.capture", "edge_daemon.mqtt"} <= set(report["modules"])
    assert not {"edge_daemon.worker", "edge_daemon.grabber", "edge_daemon.moondream"} & set(report["modules"])
    rss_mib = report["rss_kib"] / 1024
    print(f"\nthe daemon's imports: {len(report['modules'])} modules, {rss_mib:.1f} MiB resident")
    assert rss_mib <= PARENT_RSS_MIB


@each_module
def test_children_import_nothing_from_where_we_are(module: Module) -> None:
    """With `-m` and `-c` Python looks there first, but for -P and -I; a folder of pictures is no place for code."""
    lists = [node.elts for node in ast.walk(module.tree) if isinstance(node, ast.List | ast.Tuple)]
    options = [ast.unparse(elts[1]) for elts in lists if elts and ast.unparse(elts[0]) == "sys.executable"]
    assert set(options) <= {"'-P'", "'-I'"}
