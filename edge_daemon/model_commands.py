"""The `edge-daemon model …` commands: arguments in, words and a progress bar out. The work is done in `models`.

Imported by every command, so it is light: each function imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edge_daemon import subcommand
from edge_daemon.choices import Engine, ExportFormat, ExportPrecision
from edge_daemon.errors import UnavailableError
from edge_daemon.exit_codes import OK
from edge_daemon.model_files import WEIGHTS
from edge_daemon.models.store import Progress, Store, silent
from edge_daemon.subcommand import Commands
from edge_daemon.units import MIB

if TYPE_CHECKING:
    from edge_daemon.models.catalogue import Artefact

EXTRA = ("huggingface_hub", "onnx", "onnxruntime", "transformers")
"""Libraries of the extra `models`."""
SUFFIXES = (".gz", ".mf", ".safetensors")
BAR_WIDTH = 30
EXAMPLES = """\
examples:
  edge-daemon model list                             what is installed, what can be fetched, what fits this board
  edge-daemon model pull moondream-0.5b              fetch, convert, prove; then `model: {name: moondream-0.5b}`
  edge-daemon model import moondream-0_5b-int8.mf.gz a file that was fetched elsewhere
  edge-daemon model verify moondream-0.5b"""


def add(commands: Commands) -> None:
    """Put `model` and what follows it among the commands."""
    top = commands.add_parser(
        "model",
        help="list, fetch, import, check, remove and export models",
        description="List, fetch, import, check, remove and export models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_list(kinds)
    _add_pull(kinds)
    _add_import(kinds)
    _add_verify(kinds)
    _add_remove(kinds)
    _add_export(kinds)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="torch",
        help="torch: convert to float32 and prove it equal (default); onnx: run the file's own graphs in ONNX Runtime",
    )
    command.add_argument("--replace", action="store_true", help="overwrite an installed model of the same name")


def _add_list(kinds: Commands) -> None:
    command = subcommand.add(
        kinds,
        "list",
        "list installed models and models to fetch; say which fit this board, and why",
        "  edge-daemon model list\n  edge-daemon model list --json | jq '.catalogue[] | select(.memory.fits).name'",
    )
    _add_json(command)
    command.set_defaults(command=list_models)


def _add_pull(kinds: Commands) -> None:
    command = subcommand.add(
        kinds,
        "pull",
        "fetch a model from the hub, check it, convert it, prove it",
        "  edge-daemon model pull moondream-0.5b\n"
        "  HF_ENDPOINT=https://mirror.example edge-daemon model pull moondream-0.5b      from a mirror\n"
        "  HF_HOME=/mnt/usb/hf edge-daemon model pull moondream-0.5b                     downloads on another disk\n"
        "to continue an interrupted download, run the same command again",
    )
    command.add_argument("name", metavar="NAME", help="a model that `edge-daemon model list` shows")
    _add_engine(command)
    _add_json(command)
    command.set_defaults(command=pull)


def _add_import(kinds: Commands) -> None:
    command = subcommand.add(
        kinds,
        "import",
        "import a model from a moonfile or a safetensors checkpoint",
        "  edge-daemon model import moondream-0_5b-int8.mf.gz --name moondream-0.5b\n"
        "  edge-daemon model import ./moondream2-2025-06-21 --name moondream-2b\n"
        "  edge-daemon model import my.mf --to ./my-model && edge-daemon caption porch.jpg --model ./my-model",
    )
    command.add_argument("source", metavar="FILE_OR_DIR", type=Path, help=".mf, .mf.gz, .safetensors or a directory")
    place = command.add_mutually_exclusive_group()
    place.add_argument("--name", metavar="N", help="its name in the model store (default: the file's name)")
    place.add_argument("--to", metavar="DIR", type=Path, help="write to DIR instead of the model store")
    _add_engine(command)
    _add_json(command)
    command.set_defaults(command=import_model)


def _add_verify(kinds: Commands) -> None:
    command = subcommand.add(
        kinds,
        "verify",
        "check a model's files, and compare it again with the file it was made from",
        "  edge-daemon model verify moondream-0.5b\n"
        "  edge-daemon model verify moondream-0.5b --source /mnt/usb/moondream-0_5b-int8.mf.gz",
    )
    command.add_argument("name", metavar="NAME_OR_DIR")
    command.add_argument("--source", metavar="FILE", type=Path, help="the moonfile, if it has moved")
    _add_json(command)
    command.set_defaults(command=verify)


def _add_remove(kinds: Commands) -> None:
    command = subcommand.add(
        kinds, "remove", "delete a model from the store", "  edge-daemon model remove moondream-0.5b"
    )
    command.add_argument("name", metavar="NAME")
    command.set_defaults(command=remove)


def _add_export(kinds: Commands) -> None:
    command = subcommand.add(
        kinds,
        "export",
        "write a model as a moonfile, as ONNX graphs, or as safetensors in upstream's layout",
        "  edge-daemon model export demo-shapes demo.mf.gz --format moonfile --precision int8\n"
        "  edge-daemon model export moondream-0.5b ./graphs --format onnx\n"
        "  edge-daemon model export moondream-0.5b ./weights --format safetensors --precision float16",
    )
    command.add_argument("name", metavar="NAME_OR_DIR")
    out = "for moonfile a file (compressed if it ends in .gz), else a directory"
    command.add_argument("out", metavar="OUT", type=Path, help=out)
    command.add_argument("--format", choices=get_args(ExportFormat), required=True)
    command.add_argument(
        "--precision", choices=get_args(ExportPrecision), help="precision of the weights (default: float32)"
    )
    command.set_defaults(command=export)


def list_models(arguments: argparse.Namespace, catalogue: Sequence[Artefact] | None = None) -> int:
    """`edge-daemon model list`."""
    from edge_daemon import memory
    from edge_daemon.models.catalogue import CATALOGUE
    from edge_daemon.models.inventory import inventory

    document = inventory(_store(), tuple(catalogue or CATALOGUE), memory.budget(memory.read_limits(None)))
    print(json.dumps(document, indent=2) if arguments.json else _in_words(document))
    return OK


def _in_words(document: dict[str, Any]) -> str:
    """The inventory for people."""
    lines = [f"in {document['store']}:"]
    lines += [_local_line(model) for model in document["installed"]] or ["  nothing yet"]
    lines += ["built in:", *(_local_line(model) for model in document["built_in"]), "can be fetched:"]
    for known in document["catalogue"]:
        size = f"{known['download_bytes'] / MIB:.0f} MiB" if known["download_bytes"] else "size not known"
        here = ", installed" if known["installed"] else ""
        lines.append(f"  {known['name']}: {known['summary']} ({size}, {known['licence']}{here})")
        lines += [f"    {what}: {_verdict(known[what])}" for what in ("memory", "disk")]
    return "\n".join(lines)


def _local_line(model: dict[str, Any]) -> str:
    origin = model["repository"] or model["source"]
    source = f", from {origin}" if origin else ""
    head = f"  {model['name']}: {model['size_bytes'] / MIB:.0f} MiB, engine {model['engine'] or 'unknown'}{source}"
    return f"{head}\n    memory: {_verdict(model['memory'])}"


def _verdict(verdict: dict[str, Any]) -> str:
    return f"{'fits' if verdict['fits'] else 'DOES NOT FIT'}: {verdict['why']}"


def pull(arguments: argparse.Namespace, catalogue: Sequence[Artefact] | None = None) -> int:
    """`edge-daemon model pull`."""
    from edge_daemon.models.catalogue import CATALOGUE, artefact

    wanted = artefact(arguments.name, tuple(catalogue or CATALOGUE))
    with _extra(), _progress(arguments.json) as progress:
        from edge_daemon.models.pull import pull as fetch_and_import

        options = {"engine": arguments.engine, "replace": arguments.replace}
        directory = fetch_and_import(wanted, _store(), **options, progress=progress)
    return _done(directory, arguments.name, arguments.name, arguments.json)


def import_model(arguments: argparse.Namespace) -> int:
    """`edge-daemon model import`."""
    store = Store.around(arguments.to) if arguments.to else _store()
    name = arguments.to.absolute().name if arguments.to else arguments.name or name_of(arguments.source)
    with _extra(), _progress(arguments.json) as progress:
        from edge_daemon.models.importing import import_source

        options = {"engine": arguments.engine, "replace": arguments.replace}
        directory = import_source(arguments.source, store, name, **options, progress=progress)
    named, place = (str(arguments.to), f"{directory.absolute()}") if arguments.to else (name, name)
    return _done(directory, named, place, arguments.json)


def name_of(source: Path) -> str:
    """A name for what is imported: that of the file without its endings, or of the directory."""
    place = source.absolute().parent if source.name == WEIGHTS else source.absolute()
    name = place.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _done(directory: Path, name: str, place: str, as_json: bool) -> int:
    """`place` is what `--model` takes."""
    from edge_daemon.models.store import look

    model = look(directory)
    proof = model.provenance.get("proof")
    if as_json:
        print(json.dumps({"name": name, "directory": str(directory), "engine": model.engine, "proof": proof}))
        return OK
    print(f"{name}: {model.size_bytes / MIB:.0f} MiB in {directory}, engine {model.engine}")
    if proof:
        print(_proof_in_words(proof))
    print(f"try it: edge-daemon caption PICTURE --model {place}")
    return OK


def verify(arguments: argparse.Namespace) -> int:
    """`edge-daemon model verify`."""
    from edge_daemon import models

    directory = models.directory_of(arguments.name, _state_dir())
    with _extra(), _progress(arguments.json) as progress:
        from edge_daemon.models import importing

        report = importing.verify(directory, arguments.source, progress)
    if arguments.json:
        print(json.dumps(report))
        return OK
    print(f"{arguments.name}: {len(report['files'])} files are unchanged since the import")
    if report["proof"]:
        print(_proof_in_words(report["proof"]))
    if report.get("note"):
        print(report["note"])
    return OK


def _proof_in_words(proof: dict[str, Any]) -> str:
    """The comparison with the original graphs, a line a component."""
    exact = {c["component"]: c["relative_error"] for c in proof["exact"]}
    lines = [f"compared with its {proof['precision']} graphs as they are, and without their rounding of activations:"]
    lines += [
        f"  {c['component']}: relative error {c['relative_error']:.2g}, {exact[c['component']]:.2g}"
        for c in proof["components"]
    ]
    same = f"{proof['greedy_agreement']:.1%} of {proof['greedy_steps']}"
    return "\n".join([*lines, f"  words: {same} greedy tokens are the same"])


def remove(arguments: argparse.Namespace) -> int:
    """`edge-daemon model remove`."""
    size_bytes = _store().remove(arguments.name)
    print(f"{arguments.name}: removed, {size_bytes / MIB:.0f} MiB freed")
    return OK


def export(arguments: argparse.Namespace) -> int:
    """`edge-daemon model export`."""
    from edge_daemon import models

    directory = models.directory_of(arguments.name, _state_dir())
    with _extra(), _progress(as_json=False) as progress:
        from edge_daemon.models.export import export as write

        write(directory, arguments.out, arguments.format, arguments.precision, progress)
    print(f"{arguments.out}: {arguments.name} as {arguments.format}")
    return OK


def _state_dir() -> Path:
    from edge_daemon import config

    return config.default_state_dir()


def _store() -> Store:
    return Store(_state_dir())


@contextmanager
def _extra() -> Iterator[None]:
    """Say which pip command helps when a library of the extra is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UnavailableError(f"this needs {error.name}: pip install 'edge-daemon[models]'") from error


@contextmanager
def _progress(as_json: bool) -> Iterator[Progress]:
    """A bar on stderr for people who look at it; silence otherwise."""
    if as_json or not sys.stderr.isatty():
        yield silent
        return
    bar = Bar()
    try:
        yield bar.show
    finally:
        bar.clear()


class Bar:
    """One line that is drawn over itself."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, what: str, share: float) -> None:
        """Draw, if anything changed that can be seen."""
        share = min(1.0, max(0.0, share))
        filled = int(share * BAR_WIDTH)
        line = f"[{'#' * filled}{' ' * (BAR_WIDTH - filled)}] {int(share * 100):3} % {what}"
        if line != self._shown:
            self._draw(line)

    def clear(self) -> None:
        """Leave the line empty, for what is said next."""
        if self._shown:
            self._draw("")
            print("\r", end="", file=sys.stderr, flush=True)

    def _draw(self, line: str) -> None:
        print(f"\r{line:<{len(self._shown)}}", end="", file=sys.stderr, flush=True)
        self._shown = line
