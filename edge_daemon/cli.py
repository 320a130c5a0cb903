"""The commands. Each imports what it needs when it runs, so that `--help` is quick and `run` stays light."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from edge_daemon import __version__, model_commands
from edge_daemon.errors import ChildBootError, ConfigError, EdgeDaemonError, ModelError, UnavailableError

OK, UNEXPECTED, USAGE, UNAVAILABLE, CONFIG = 0, 1, 2, 69, 78
"""Exit codes; 69 and 78 are EX_UNAVAILABLE and EX_CONFIG of sysexits.h. The unit never restarts on 78."""

EPILOG = """\
exit codes: 0 done, 1 unexpected (a bug, please report), 2 usage,
            69 something needed is not available, 78 the configuration is wrong
try it:     edge-daemon demo"""
DEFAULT_CONFIG = "/etc/edge-daemon/config.yaml"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run the command."""
    return perform(parser().parse_args(argv))


def perform(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments; turn errors into exit codes."""
    try:
        return int(arguments.command(arguments))
    except (ConfigError, ChildBootError) as error:
        return fail(error, CONFIG)
    except EdgeDaemonError as error:
        return fail(error, UNAVAILABLE)
    except BrokenPipeError:
        # whoever read our output has gone (`| head`); Python would complain once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return fail("interrupted", UNEXPECTED)


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
    model_commands.add(commands)
    _add_demo(commands)
    return top


def _add(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_config_option(command: argparse.ArgumentParser) -> None:
    default = os.environ.get("EDGE_DAEMON_CONFIG", DEFAULT_CONFIG)
    command.add_argument(
        *("-c", "--config"), metavar="FILE", type=Path, default=Path(default), help=f"YAML (default: {default})"
    )


def _add_run(commands: Commands) -> None:
    command = _add(
        *(commands, "run", "run the service in the foreground"),
        "  edge-daemon run -c /etc/edge-daemon/config.yaml\n"
        "  mosquitto_sub -v -t 'edge-daemon/#'       what it says, in another terminal",
    )
    _add_config_option(command)
    command.set_defaults(command=run)


def _add_check_config(commands: Commands) -> None:
    command = _add(
        *(commands, "check-config", "check a configuration file and say what would run"),
        "  edge-daemon check-config -c configs/full.yaml",
    )
    _add_config_option(command)
    command.add_argument("--json", action="store_true", help="print the whole configuration, defaults included")
    command.set_defaults(command=check_config)


def _add_caption(commands: Commands) -> None:
    command = _add(
        *(commands, "caption", "caption pictures and answer questions about them, without the service"),
        "  edge-daemon caption porch.jpg\n"
        "  edge-daemon caption *.jpg --json | jq -r .caption\n"
        "  edge-daemon caption porch.jpg --ask 'Is the gate open?' --ask 'How many people are there?'\n"
        "  edge-daemon caption scene.png --detect circle",
    )
    command.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="picture files")
    command.add_argument("--ask", action="append", default=[], metavar="Q", help="a question (repeatable)")
    command.add_argument("--detect", action="append", default=[], metavar="OBJ", help="find boxes (repeatable)")
    command.add_argument("--length", default="short", metavar="L", help="short or normal (default: short)")
    command.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer (default: 64)")
    command.add_argument("--model", default="demo-shapes", metavar="NAME_OR_DIR", help="default: demo-shapes")
    command.add_argument("--precision", choices=["float32"], default="float32", help="default: float32")
    command.add_argument("--json", action="store_true", help="one JSON document a picture, one a line")
    command.set_defaults(command=caption)


def _add_demo(commands: Commands) -> None:
    command = _add(
        *(commands, "demo", "start a broker and the service, caption sample pictures, show what a subscriber gets"),
        "  edge-daemon demo\n  edge-daemon demo --pictures 3 --json",
    )
    command.add_argument("--pictures", type=int, default=6, metavar="N", help="sample pictures (default: 6)")
    command.add_argument("--seed", type=int, default=time.time_ns(), metavar="N", help="the same pictures again")
    command.add_argument("--json", action="store_true", help="print only what was received, one JSON document a line")
    command.add_argument("--embedded", action="store_true", help="use the Python broker even if mosquitto is here")
    command.set_defaults(command=demo)


def run(arguments: argparse.Namespace) -> int:
    """`edge-daemon run`."""
    from edge_daemon import config, daemon, models
    from edge_daemon.logs import set_up

    settings = config.load(arguments.config)
    set_up(settings.log_level)
    faulthandler.enable()  # systemd's watchdog ends us with SIGABRT: say where we were
    try:
        directory = models.directory_of(settings.model.name, settings.state_dir)
    except UnavailableError as error:
        raise ConfigError(f"{arguments.config}: model.name: {error}") from error
    try:
        asyncio.run(daemon.run(settings, directory))
    except* EdgeDaemonError as group:
        first = _first(group)
        if isinstance(first, ModelError):  # its files will be no better after a restart
            raise ConfigError(f"{arguments.config}: model.name: {first}") from group
        raise first from group
    return OK


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error inside a group of groups; a task group of ours fails with the first."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def check_config(arguments: argparse.Namespace) -> int:
    """`edge-daemon check-config`."""
    from edge_daemon import config

    settings = config.load(arguments.config)
    if arguments.json:
        print(settings.model_dump_json(indent=2))
        return OK
    broker = f"{settings.mqtt.host}:{settings.mqtt.port}"
    print(f"{arguments.config}: good\n  model {settings.model.name}, broker {broker}")
    for name, source in settings.sources.items():
        topic = f"{settings.mqtt.base_topic}/{settings.node}/{name}/caption"
        print(f"  source {name}: {source.type} {source.path} → {topic}")
    return OK


def caption(arguments: argparse.Namespace) -> int:
    """`edge-daemon caption`."""
    from edge_daemon import caption_files, config, models

    directory = models.directory_of(arguments.model, config.default_state_dir())
    wishes = caption_files.Wishes(arguments.length, arguments.ask, arguments.detect, arguments.max_tokens)
    failures = 0
    for document in caption_files.caption_files(directory, arguments.images, wishes):
        failures += "error" in document
        print(json.dumps(document) if arguments.json else caption_files.in_words(document), flush=True)
    return UNAVAILABLE if failures else OK


def demo(arguments: argparse.Namespace) -> int:
    """`edge-daemon demo`."""
    from edge_daemon.demo import show

    options = {"as_json": arguments.json, "embedded": arguments.embedded}
    return OK if show.run(arguments.pictures, arguments.seed, **options) else UNEXPECTED
