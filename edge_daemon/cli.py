"""The commands. Each imports what it needs when it runs, so that `--help` is quick and `run` stays light."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import io
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edge_daemon import __version__, environment, model_commands, source_commands, subcommand, unit_command
from edge_daemon.bench import command as bench_command
from edge_daemon.choices import CaptionLength, WantedDevice, WantedPrecision
from edge_daemon.doctor import command as doctor_command
from edge_daemon.errors import ChildBootError, ConfigError, EdgeDaemonError, ModelError, UnavailableError
from edge_daemon.exit_codes import CONFIG, OK, UNAVAILABLE, UNEXPECTED
from edge_daemon.subcommand import Commands, at_least

if TYPE_CHECKING:
    from edge_daemon.config import Config

EPILOG = """\
exit codes: 0 done, 1 unexpected error (a bug; please report it), 2 wrong command line,
            69 something needed is not available, 78 the configuration is wrong
try it:     edge-daemon demo"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run the command; what we start has our environment."""
    environment.prepare(os.environ)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text, and a terminal may lack a character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return perform(parser().parse_args(argv))
    finally:
        _flush()


def perform(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments; turn errors into exit codes."""
    try:
        return int(arguments.command(arguments))
    except (ConfigError, ChildBootError) as error:
        return fail(error, CONFIG)
    except EdgeDaemonError as error:
        return fail(error, UNAVAILABLE)
    except BrokenPipeError:
        return OK
    except KeyboardInterrupt:
        return fail("interrupted", UNEXPECTED)


def _flush() -> None:
    """Print what is still to be printed. Whoever read it may have gone (`| head`): Python complains at its exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: EdgeDaemonError | str, code: int) -> int:
    """Say an error once, on stderr."""
    print(f"edge-daemon: {error}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="edge-daemon",
        description="Lets a Raspberry Pi say what it sees: captions pictures on the CPU and publishes them by MQTT.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"edge-daemon {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_check_config(commands)
    _add_caption(commands)
    source_commands.add(commands)
    model_commands.add(commands)
    bench_command.add(commands)
    doctor_command.add(commands)
    unit_command.add(commands)
    _add_demo(commands)
    return top


def _add_device_options(command: argparse.ArgumentParser, default: str | None) -> None:
    """`default` None leaves it to the configuration."""
    where = command.add_mutually_exclusive_group()
    told = "default: the configuration's" if default is None else f"default: {default}"
    where.add_argument(
        "--device", choices=get_args(WantedDevice), default=default, help=f"where the model runs ({told})"
    )
    where.add_argument("--cpu", dest="device", action="store_const", const="cpu", help="the same as --device cpu")


def _add_run(commands: Commands) -> None:
    command = subcommand.add(
        commands,
        "run",
        "run the service in the foreground",
        "  edge-daemon run -c /etc/edge-daemon/config.yaml\n"
        "  mosquitto_sub -v -t 'edge-daemon/#'       shows what it publishes, in another terminal",
    )
    subcommand.add_config_option(command)
    _add_device_options(command, None)
    command.set_defaults(command=run)


def _add_check_config(commands: Commands) -> None:
    command = subcommand.add(
        commands,
        "check-config",
        "check a configuration file and show what would run",
        "  edge-daemon check-config -c configs/folder.yaml",
    )
    subcommand.add_config_option(command)
    command.add_argument("--json", action="store_true", help="print the whole configuration, defaults included")
    command.set_defaults(command=check_config)


def _add_caption(commands: Commands) -> None:
    command = subcommand.add(
        commands,
        "caption",
        "caption pictures and answer questions about them, without the service",
        "  edge-daemon caption porch.jpg\n"
        "  edge-daemon caption *.jpg --json | jq -r .caption\n"
        "  edge-daemon caption porch.jpg --ask 'Is the gate open?' --ask 'How many people are there?'\n"
        "  edge-daemon caption scene.png --detect circle --cpu",
    )
    command.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="picture files")
    command.add_argument("--ask", action="append", default=[], metavar="Q", help="ask a question (repeatable)")
    found = "find these objects and print their boxes (repeatable)"
    command.add_argument("--detect", action="append", default=[], metavar="OBJ", help=found)
    length = "short, normal, or long if the model has it (default: short)"
    command.add_argument("--length", choices=get_args(CaptionLength), default="short", metavar="L", help=length)
    most = "most tokens per answer (default: 64)"
    command.add_argument("--max-tokens", type=at_least(1), default=64, metavar="N", help=most)
    model = "an installed model or a model directory (default: demo-shapes)"
    command.add_argument("--model", default="demo-shapes", metavar="NAME_OR_DIR", help=model)
    _add_device_options(command, "auto")
    command.add_argument(
        "--precision",
        choices=get_args(WantedPrecision),
        default="auto",
        help="what to compute in (default: auto, which on a CPU is float32 if it fits in memory, else int8)",
    )
    command.add_argument("--json", action="store_true", help="one JSON document per picture, each on its own line")
    command.set_defaults(command=caption)


def _add_demo(commands: Commands) -> None:
    command = subcommand.add(
        commands,
        "demo",
        "start a broker and the service, caption sample pictures, show what a subscriber receives",
        "  edge-daemon demo\n  edge-daemon demo --pictures 3 --json",
    )
    pictures = "number of sample pictures (default: 6)"
    command.add_argument("--pictures", type=at_least(1), default=6, metavar="N", help=pictures)
    seed = "seed for the sample pictures; the same seed gives the same pictures"
    command.add_argument("--seed", type=int, default=time.time_ns(), metavar="N", help=seed)
    received = "print only what was received, each JSON document on its own line"
    command.add_argument("--json", action="store_true", help=received)
    embedded = "use the Python broker even if mosquitto is installed"
    command.add_argument("--embedded", action="store_true", help=embedded)
    command.set_defaults(command=demo)


def run(arguments: argparse.Namespace) -> int:
    """`edge-daemon run`."""
    from edge_daemon import daemon
    from edge_daemon.logs import set_up

    settings = configured(arguments)
    set_up(settings.log_level)
    faulthandler.enable()  # systemd's watchdog ends us with SIGABRT: say where we were
    directory, reason = find_model(arguments.config, settings)
    try:
        with suppress(asyncio.CancelledError):  # by a second signal: it ends as it was asked to
            asyncio.run(daemon.run(settings, directory, reason, partial(configured, arguments)))
    except* EdgeDaemonError as group:
        first = _first(group)
        if isinstance(first, ModelError):  # neither its files nor the machine will be better after a restart
            raise ConfigError(f"{arguments.config}: model: {first}") from group
        raise first from group
    return OK


def configured(arguments: argparse.Namespace) -> Config:
    """The configuration file as it is now, with what the command line puts in its place. Raises ConfigError."""
    from edge_daemon import config

    settings = config.load(arguments.config)
    if arguments.device is None:
        return settings
    model = settings.model.model_copy(update={"device": arguments.device})
    return settings.model_copy(update={"model": model})


def find_model(path: Path, settings: Config) -> tuple[Path, str]:
    """The model directory that a configuration means, and why, where it leaves the choice to us."""
    from edge_daemon import memory, variant

    model = settings.model
    budget = memory.budget(memory.read_limits(model.memory_limit_bytes))
    try:
        return variant.resolve(model.name, model.variant, model.precision, settings.state_dir, budget)
    except (ConfigError, UnavailableError) as error:
        raise ConfigError(f"{path}: model.name: {error}") from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error inside a group of groups; a task group of ours fails with the first."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def check_config(arguments: argparse.Namespace) -> int:
    """`edge-daemon check-config`."""
    from edge_daemon import config, variant

    settings = config.load(arguments.config)
    if arguments.json:
        print(json.dumps(settings.model_dump(mode="json"), indent=2))
        return OK
    broker = f"{settings.mqtt.host}:{settings.mqtt.port}"
    named, directory = settings.model.name, None
    try:
        directory, reason = find_model(arguments.config, settings)
        named = reason or named
    except ConfigError:
        if named == variant.FAMILY:
            raise
        # the file may be for another machine
        named += " (not installed on this machine; edge-daemon model list shows what can be fetched)"
    if directory is not None:
        _refuse_lengths(arguments.config, settings, directory)
    print(f"{arguments.config}: good\n  model {named}")
    if directory is not None:
        print(f"    on the CPU of this machine: {_memory_in_words(directory, settings)}")
    print(f"  broker {broker}")
    for name, source in settings.sources.items():
        topic = f"{settings.mqtt.base_topic}/{settings.node}/{name}/caption"
        print(f"  source {name}: {source.type} {source.place} → {topic}")
    return OK


def _refuse_lengths(path: Path, settings: Config, directory: Path) -> None:
    """Raise ConfigError for a length of captions that the model does not have: there would be none."""
    from edge_daemon import yaml_file
    from edge_daemon.models.inventory import lengths

    try:
        known = lengths(directory)
    except ModelError:  # what is wrong with it is told with what it needs
        return
    for name, source in settings.sources.items():
        if source.caption not in ("none", *known):
            where = yaml_file.read(path).where(("sources", name, "caption"))
            raise ConfigError(
                f"{where}: sources.{name}.caption: value {source.caption!r}: {settings.model.name} has no such "
                f"caption; it has: {', '.join(known)}"
            )


def _memory_in_words(directory: Path, settings: Config) -> str:
    """Whether the model fits here now, and in which precision it would run."""
    from edge_daemon import memory
    from edge_daemon.models.inventory import memory_of

    model = settings.model
    budget = memory.budget(memory.read_limits(model.memory_limit_bytes))
    verdict = memory_of(directory, budget, model.precision, model.kv_precision)
    if verdict["fits"]:
        return f"fits: {verdict['why']}"
    return f"DOES NOT FIT: {verdict['why']}; the program's own memory is estimated here, and measured by the service"


def caption(arguments: argparse.Namespace) -> int:
    """`edge-daemon caption`."""
    from edge_daemon import caption_files, config, memory, variant
    from edge_daemon.models.inventory import lengths

    state_dir, budget = config.default_state_dir(), memory.budget(memory.read_limits(None))
    directory, reason = variant.resolve(arguments.model, "auto", arguments.precision, state_dir, budget)
    if reason:
        print(f"edge-daemon: {reason}", file=sys.stderr)
    if arguments.length not in (known := lengths(directory)):
        raise UnavailableError(f"{arguments.model} has no {arguments.length!r} caption; it has: {', '.join(known)}")
    opened = caption_files.open_model(directory, arguments.device, arguments.precision)
    if opened.choice.warning:
        print(f"edge-daemon: {opened.choice.warning}", file=sys.stderr)
    wishes = caption_files.Wishes(arguments.length, arguments.ask, arguments.detect, arguments.max_tokens)
    failures = 0
    for document in caption_files.caption_files(opened, arguments.images, wishes):
        failures += "error" in document
        print(json.dumps(document) if arguments.json else caption_files.in_words(document), flush=True)
    return UNAVAILABLE if failures else OK


def demo(arguments: argparse.Namespace) -> int:
    """`edge-daemon demo`."""
    from edge_daemon.demo import show

    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: broker and service must not outlive us, nor a closed terminal
        signal.signal(getattr(signal, name, signal.SIGTERM), signal.default_int_handler)
    show.run(arguments.pictures, arguments.seed, as_json=arguments.json, embedded=arguments.embedded)
    return OK
