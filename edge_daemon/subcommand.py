"""How a command is added to the command line: a summary, and examples that teach."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEFAULT_CONFIG = Path("/etc/edge-daemon/config.yaml")


def add(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """One command; the caller adds its options."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_option(command: argparse.ArgumentParser) -> None:
    """Where the configuration is."""
    default = os.environ.get("EDGE_DAEMON_CONFIG") or DEFAULT_CONFIG
    told = f"the configuration, a YAML file (default: {default})"
    command.add_argument("-c", "--config", metavar="FILE", type=Path, default=Path(default), help=told)


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` up."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return number
