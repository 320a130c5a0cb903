"""`edge-daemon bench`: arguments in, a table and one line of JSON out. Light: the work is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edge_daemon import subcommand
from edge_daemon.choices import WantedPrecision
from edge_daemon.errors import UnavailableError
from edge_daemon.exit_codes import OK
from edge_daemon.scratch import scratch
from edge_daemon.subcommand import Commands, at_least

PREFERRED = "moondream-0.5b"


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    directory: Path
    random_weights: bool


def add(commands: Commands) -> None:
    """Put `bench` among the commands."""
    command = subcommand.add(
        commands,
        "bench",
        "measure how long each stage of a caption takes, compared with what this machine can do",
        "  edge-daemon bench                    the installed model, or random weights of the 0.5B shape\n"
        "  edge-daemon bench --precision int8 --threads 3\n"
        "  edge-daemon bench --model demo-shapes --json | jq .of_the_limits",
    )
    what = command.add_mutually_exclusive_group()
    model = f"the model to measure (default: {PREFERRED}, or another that is installed)"
    what.add_argument("--model", metavar="NAME_OR_DIR", help=model)
    shape = "use random weights of this shape (needs 2.5 GB of disk while it runs)"
    what.add_argument("--shape", choices=["0.5b"], help=shape)
    command.add_argument(
        "--precision",
        choices=get_args(WantedPrecision),
        default="auto",
        help="what to compute in (default: auto)",
    )
    threads = "number of threads (default: what `threads: auto` gives the service)"
    command.add_argument("--threads", type=at_least(1), metavar="N", help=threads)
    command.add_argument("--runs", type=at_least(1), default=3, metavar="N", help="number of pictures (default: 3)")
    tokens = "tokens generated per picture (default: 20)"
    command.add_argument("--tokens", type=at_least(2), default=20, metavar="N", help=tokens)
    command.add_argument("--json", action="store_true", help="print only the last line, the JSON document")
    command.set_defaults(command=bench)


def bench(arguments: argparse.Namespace) -> int:
    """`edge-daemon bench`."""
    from edge_daemon.bench.measure import Wishes, measure
    from edge_daemon.bench.report import document, table

    wishes = Wishes(arguments.precision, arguments.threads, arguments.runs, arguments.tokens)
    with _subject(arguments.model, arguments.shape) as subject:
        measured = measure(subject.directory, wishes, say)
    origin = {"directory": None if subject.random_weights else str(subject.directory)}
    said = document(measured, {**origin, "random_weights": subject.random_weights})
    if not arguments.json:
        print(table(said), end="\n\n")
    print(json.dumps(said, separators=(",", ":"), ensure_ascii=False))
    return OK


def say(text: str) -> None:
    """What goes on, for whoever waits: on a small board all this takes minutes."""
    print(f"edge-daemon: {text} …", file=sys.stderr, flush=True)


@contextmanager
def _subject(name: str | None, shape: str | None) -> Iterator[Subject]:
    """The model that is meant, or one with random weights that is gone afterwards."""
    from edge_daemon import config, models

    state_dir = config.default_state_dir()
    if name is None and shape is None and (present := models.installed(state_dir)):
        name = PREFERRED if PREFERRED in present else present[0]
        say(f"using the installed model {name}")
    if name is not None:
        yield Subject(models.directory_of(name, state_dir), random_weights=False)
        return
    if shape is None:
        say("no model is installed, so this uses random weights of the 0.5B shape")
    with _random_model(shape or "0.5b") as directory:
        yield Subject(directory, random_weights=True)


@contextmanager
def _random_model(shape: str) -> Iterator[Path]:
    """Raises UnavailableError where there is no room for it, or nothing may be written."""
    from edge_daemon.bench.random_model import SHAPES, check_room, write_random

    place = scratch()
    check_room(place, SHAPES[shape])
    try:
        made = tempfile.TemporaryDirectory(prefix="edge-daemon-bench-", dir=place)
    except OSError as error:
        raise UnavailableError(f"{place}: {error.strerror}: set TMPDIR to a directory for random weights") from error
    with made as name:
        say(f"writing random weights to {name}")
        write_random(Path(name), SHAPES[shape])
        yield Path(name)
