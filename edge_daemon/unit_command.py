"""The command `systemd`: what the unit needs for a configuration, as a drop-in."""

from __future__ import annotations

import argparse
import ipaddress
import shlex
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon import subcommand
from edge_daemon.errors import ConfigError, UnavailableError
from edge_daemon.exit_codes import OK
from edge_daemon.subcommand import Commands

if TYPE_CHECKING:
    from edge_daemon.drop_in import Reach

UNITS = Path("/etc/systemd/system")
DROP_IN = "50-configuration.conf"
RESOLV_CONF = Path("/etc/resolv.conf")
Resolve = Callable[[str], tuple[str, ...]]


def add(commands: Commands) -> None:
    """`edge-daemon systemd`."""
    top = subcommand.add(
        commands,
        "systemd",
        "print or install what the systemd unit needs for a configuration",
        "  edge-daemon systemd render -c /etc/edge-daemon/config.yaml\n"
        "  sudo edge-daemon systemd render --strict --write",
    )
    kinds = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = subcommand.add(
        kinds,
        "render",
        "print the unit's drop-in: the devices, paths and addresses that a configuration needs",
        "  edge-daemon systemd render                        print it\n"
        "  sudo edge-daemon systemd render --write           install it for the unit of this configuration\n"
        "  sudo edge-daemon systemd render --strict --write  also close the network, except for broker and cameras\n"
        "  sudo edge-daemon systemd render --strict --allow 192.168.1.0/24 --write   also allow the home network",
    )
    subcommand.add_config_option(command)
    command.add_argument(
        "--strict", action="store_true", help="allow network access only to the configured broker and cameras"
    )
    told = (
        "with --strict: also allow this address or network (repeatable); "
        "a host that cannot be resolved now is then no error"
    )
    command.add_argument("--allow", action="append", default=[], metavar="ADDRESS[/BITS]", help=told)
    command.add_argument("--write", action="store_true", help=f"install it under {UNITS} instead of printing it")
    command.set_defaults(command=render)


def render(arguments: argparse.Namespace) -> int:
    """`edge-daemon systemd render`."""
    from edge_daemon import config, drop_in, yaml_file

    path = arguments.config.absolute()
    settings = config.load(path)
    if arguments.allow and not arguments.strict:
        raise ConfigError("--allow needs --strict: it says what stays open when --strict closes the network")
    folders = (place for _, place in drop_in.paths(settings))
    groups = {place: group for place in folders if (group := reading_group(place))}
    found = drop_in.Found(
        credentials=yaml_file.credentials(path),
        credentials_dir=path.parent / yaml_file.CREDENTIALS,
        groups=groups,
        reaches=tuple(reaches(drop_in.hosts(settings), arguments.allow, addresses)) if arguments.strict else None,
    )
    text = drop_in.text_of(settings, found, made_by(path, arguments.allow, arguments.strict))
    if arguments.write:
        install(text, unit_of(path))
    else:
        print(text, end="")
    return OK


def made_by(path: Path, allow: Sequence[str], strict: bool) -> str:
    """The command line that makes the same again."""
    words = ["edge-daemon", "systemd", "render", "-c", str(path), *(["--strict"] if strict else [])]
    return shlex.join([*words, *(part for one in allow for part in ("--allow", one)), "--write"])


def unit_of(path: Path) -> str:
    """The unit that runs a configuration: the instance of its name, if it is not the one."""
    return "edge-daemon.service" if path == subcommand.DEFAULT_CONFIG else f"edge-daemon@{path.stem}.service"


def install(text: str, unit: str) -> None:
    """Write it where systemd looks, if it is not there already, and say what is to be done then."""
    place = UNITS / f"{unit}.d" / DROP_IN
    try:
        if place.exists() and place.read_text(encoding="utf-8") == text:
            print(f"{place}: unchanged")
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"{place} cannot be written: {error.strerror}; with sudo?") from error
    print(f"{place}: written; to apply it: systemctl daemon-reload && systemctl restart {unit}")


def reading_group(path: Path) -> str:
    """The group that the service needs to read a path; empty if it needs none, or none would help (said on stderr)."""
    try:
        status = path.stat()
    except OSError:
        return ""  # not there yet, or not for us to see
    directory = stat.S_ISDIR(status.st_mode)
    needed = stat.S_IROTH | (stat.S_IXOTH if directory else 0)
    if status.st_mode & needed == needed:
        return ""
    if status.st_mode & (needed << 3) == needed << 3 and status.st_gid != 0:
        import grp  # not everywhere

        try:
            return grp.getgrgid(status.st_gid).gr_name
        except KeyError:  # a disk or a share of another machine; systemd takes numbers as well
            return str(status.st_gid)
    rights = "rX" if directory else "r"
    print(f"{path}: only its owner can read it; sudo setfacl -m u:edge-daemon:{rights} {path}", file=sys.stderr)
    return ""


def reaches(wanted: Iterator[tuple[str, str]], allow: Sequence[str], resolve: Resolve) -> Iterator[Reach]:
    """Whom the service may talk to. Raises ConfigError for a network that is none, UnavailableError for a lost name."""
    from edge_daemon.drop_in import Reach

    named = False
    for key, host in wanted:
        found = resolve(host)
        named = named or found != (host,)
        if not found and not allow:
            raise UnavailableError(
                f"{key}: value {host!r}: it has no known address now; use the address itself in the configuration, "
                "or allow its network: --allow 192.168.1.0/24"
            )
        if found:
            yield Reach(f"{key}: {host}", found)
    for text in allow:
        yield Reach("--allow", (network(text),))
    servers = name_servers(RESOLV_CONF) if named else ()
    if servers:
        yield Reach(f"the name servers of {RESOLV_CONF}", servers)


def network(text: str) -> str:
    """An address or a network, checked. Raises ConfigError."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ConfigError(
            f"--allow: value {text!r}: this must be an address, or a network such as 192.168.1.0/24"
        ) from None


def addresses(host: str) -> tuple[str, ...]:
    """The addresses of a host now; the host itself where it is one; empty where there are none."""
    bare = host.partition("%")[0]
    try:
        return (str(ipaddress.ip_address(bare)),)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(sorted({str(entry[4][0]).partition("%")[0] for entry in found}))


def name_servers(file: Path) -> tuple[str, ...]:
    """Who is asked for names."""
    try:
        words = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ()
    found = [line[1].partition("%")[0] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return tuple(dict.fromkeys(found))
