"""`edge-daemon doctor`: arguments in, findings out. Light: the checks are imported when it runs."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon import __version__, subcommand
from edge_daemon.doctor.finding import CONFIG_ID, Finding, exit_code, ok, problem, warning
from edge_daemon.errors import ConfigError, EdgeDaemonError, UnavailableError
from edge_daemon.subcommand import Commands

if TYPE_CHECKING:
    from edge_daemon.config import Config
    from edge_daemon.doctor.checkup import Check
    from edge_daemon.doctor.hiding import Hiding
    from edge_daemon.doctor.subject import CaptionWish, Subject

WIDTH = 100
READ_S = 20.0
"""For a file that may lie on a network."""
NOT_YET = "there is none yet: only the machine is checked"


def add(commands: Commands) -> None:
    """Put `doctor` among the commands."""
    command = subcommand.add(
        commands,
        "doctor",
        "check machine, configuration, broker and service; --fix repairs what it can",
        "  edge-daemon doctor                          before the service is installed, and whenever it does not work\n"
        "  edge-daemon doctor -c my.yaml --no-caption  without loading the model\n"
        "  sudo edge-daemon doctor --fix               repair what is safe to repair; asks before each repair\n"
        "  sudo edge-daemon doctor --report report.txt  write a report that is safe to share\n"
        "  edge-daemon doctor --json | jq '.findings[] | select(.state == \"problem\")'\n"
        "exit status 0 without a problem, 69 with one, 78 when the configuration is wrong",
    )
    subcommand.add_config_option(command)
    captions = command.add_mutually_exclusive_group()
    captions.add_argument("--caption", action="store_true", help="time a caption, even beside the running service")
    captions.add_argument("--no-caption", action="store_true", help="do not load a model")
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    report = "also write a report that is safe to share (no passwords or user names)"
    command.add_argument("--report", metavar="FILE", type=Path, help=report)
    fix = "repair what is safe to repair; asks before each repair"
    command.add_argument("--fix", action="store_true", help=fix)
    command.add_argument("--yes", action="store_true", help="with --fix: repair without asking")
    command.set_defaults(command=doctor)


@dataclass(frozen=True)
class Screen:
    """Where findings are told while they are found."""

    as_json: bool
    hiding: Hiding

    def title(self, text: str) -> None:
        """What is being looked at, for who sits at a terminal."""
        if not self.as_json and sys.stderr.isatty():
            print(f"\r\033[K{text} …" if text else "\r\033[K", end="", file=sys.stderr, flush=True)

    def tell(self, finding: Finding) -> None:
        """One finding."""
        from edge_daemon.doctor import screen

        if not self.as_json:
            self.title("")
            width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
            print(screen.in_words(finding, width, screen.marks_for(sys.stdout.encoding)), flush=True)

    def say(self, text: str) -> None:
        """Something else; beside a JSON document on stderr."""
        print(self.hiding.secrets_in(text), file=sys.stderr if self.as_json else sys.stdout, flush=True)


def doctor(arguments: argparse.Namespace) -> int:
    """`edge-daemon doctor`."""
    from edge_daemon.doctor import screen as words
    from edge_daemon.doctor.checkup import within
    from edge_daemon.doctor.hiding import hiding

    path = arguments.config
    try:
        hidden, (first, config) = within(READ_S, lambda: (hiding(path), configuration(path)))
    except TimeoutError:
        raise UnavailableError(f"{path} could not be read within {READ_S:g} s: its disk or mount is stuck") from None
    screen = Screen(arguments.json, hidden)
    findings = [clean(first, hidden)]
    screen.tell(findings[0])
    wish: CaptionWish = "yes" if arguments.caption else "no" if arguments.no_caption else "auto"
    subject = subject_of(path, config, wish)
    for check in checks():
        findings += examined(check, subject, screen)
    if arguments.fix:
        findings = mended(findings, subject, screen, agree_to_all=arguments.yes)
    code = exit_code(findings)
    if arguments.json:
        print(json.dumps(document(findings, path, code), indent=2))
    else:
        print(words.summary(findings))
    if arguments.report is not None:
        write_report(arguments.report, findings, code, hidden)
        screen.say(f"{arguments.report}: read it once before you share it")
    return code


def configuration(path: Path) -> tuple[Finding, Config | None]:
    """The configuration, and what is wrong with it. One that nobody asked for need not be there."""
    from edge_daemon import config

    if path == subcommand.DEFAULT_CONFIG and _is_absent(path):
        meaning = "Sources, broker and model are checked once there is one."
        return warning(CONFIG_ID, f"{path}: {NOT_YET}", meaning, f"sudo install -D configs/folder.yaml {path}"), None
    try:
        settings = config.load(path)
    except ConfigError as error:
        meaning = "The service ends with exit status 78 when it starts. What needs a configuration is not checked."
        return problem(CONFIG_ID, str(error), meaning, f"sudoedit {path}; edge-daemon check-config -c {path}"), None
    return ok(CONFIG_ID, f"{path}: sources {', '.join(settings.sources)}"), settings


def _is_absent(path: Path) -> bool:
    """Not so when we may not look."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def subject_of(path: Path, config: Config | None, caption: CaptionWish) -> Subject:
    """What there is to examine."""
    from edge_daemon.config import default_state_dir
    from edge_daemon.doctor import unit
    from edge_daemon.doctor.checkup import within
    from edge_daemon.doctor.subject import Places, Subject, account_of, lock_holder
    from edge_daemon.models.catalogue import CATALOGUE

    places, state_dir = Places(), config.state_dir if config else default_state_dir()
    service = unit.read(places.run, unit.name_of(path))
    if service.state_dir and not (config and "state_dir" in config.model_fields_set):
        state_dir = service.state_dir
    try:
        holder = within(READ_S, lambda: lock_holder(state_dir / "outbox.db"))
    except TimeoutError:  # the check of the state directory will say so
        holder = None
    subject = Subject(path, config, state_dir, account_of(service), service, places, catalogue=CATALOGUE)
    return replace(subject, service_pid=service.pid if holder is None else holder, caption=caption)


def checks() -> list[Check]:
    """All of them, in the order in which they are told."""
    from edge_daemon.doctor import (
        board,
        broker,
        capacity,
        disk,
        model,
        packages,
        processor,
        sources,
        state,
        unit,
        warmth,
    )
    from edge_daemon.doctor.checkup import Check

    return [
        Check("board", "the board and its system", 10.0, board.look),
        Check("packages", "installed libraries", 30.0, packages.look),
        Check("processor", "the processor", 10.0, processor.look),
        Check("torch", "torch, in a process of its own", processor.PROBE_S + 10.0, processor.probe),
        Check("threads", "threads", 10.0, processor.threads),
        Check("memory", "memory", 10.0, capacity.look),
        Check("temperature", "temperature and power supply", 20.0, warmth.look),
        Check("disk", "the disk", 20.0, disk.look),
        Check("state", "the state directory", 60.0, state.look),
        Check("model", "the model (reading all its files)", 300.0, model.look),
        Check("sources", "the sources", 90.0, sources.look),
        Check("broker", "the broker", 90.0, broker.look),
        Check("unit", "the service", 30.0, unit.look),
        Check("caption", "one caption (loading the model for it)", model.CAPTION_S + 10.0, model.caption),
    ]


def examined(check: Check, subject: Subject, screen: Screen) -> Iterator[Finding]:
    """Its findings, told as they come."""
    from edge_daemon.doctor.checkup import examine

    screen.title(check.title)
    for finding in examine(check, subject):
        shown = clean(finding, screen.hiding)
        screen.tell(shown)
        yield shown
    screen.title("")


def clean(finding: Finding, hiding: Hiding, *, for_all: bool = False) -> Finding:
    """Without secrets, and for a report without names."""
    hide = hiding.all_in if for_all else hiding.secrets_in
    return replace(finding, what=hide(finding.what), meaning=hide(finding.meaning), command=hide(finding.command))


def document(findings: Iterable[Finding], path: Path, code: int) -> dict[str, object]:
    """For `--json`."""
    listed = [finding.document() for finding in findings]
    return {"version": __version__, "config": str(path), "exit_code": code, "findings": listed}


def write_report(path: Path, findings: Sequence[Finding], code: int, hiding: Hiding) -> None:
    """Raises UnavailableError when it cannot be written."""
    from edge_daemon.doctor import screen

    lines = [f"edge-daemon {__version__} doctor, exit status {code}", platform.platform(), ""]
    lines += [screen.in_words(clean(finding, hiding, for_all=True)) for finding in findings]
    try:
        path.write_text("\n".join([*lines, screen.summary(findings), ""]), encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"{path}: the report cannot be written: {error.strerror}") from error


# ---- mending ----------------------------------------------------------------------------------------------


def mended(findings: Sequence[Finding], subject: Subject, screen: Screen, *, agree_to_all: bool) -> list[Finding]:
    """Offer each fix; what was mended is looked at again."""
    left, renewed = [*findings], False
    offers = [finding for finding in findings if finding.fix is not None]
    if not offers:
        screen.say("there is nothing that --fix could repair")
    for finding in offers:
        assert finding.fix is not None
        screen.say(f"\n{finding.id}: {finding.what}\n  this will {finding.fix.will}\n  to undo: {finding.fix.undo}")
        if agree_to_all or agreed(screen):
            renewed |= done(finding.fix.do, screen)
        else:
            screen.say("  left as it is")
    if not renewed:
        return left
    screen.say("\nonce more:")
    names = {finding.id.partition(".")[0] for finding in offers} | {"state"}
    config_finding, config = configuration(subject.config_path)
    again = replace(subject, config=config)
    fresh = [new for check in checks() if check.name in names for new in examined(check, again, screen)]
    ids = {finding.id.partition(".")[0] for finding in fresh} | names
    return [clean(config_finding, screen.hiding), *(f for f in left[1:] if f.id.partition(".")[0] not in ids), *fresh]


def agreed(screen: Screen) -> bool:
    """Ask at the terminal; without one nothing is done."""
    if not sys.stdin.isatty():
        screen.say("  not done: there is nobody to ask; --yes repairs without asking")
        return False
    print("  do it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def done(do: Callable[[], str], screen: Screen) -> bool:
    """Whether it worked."""
    try:
        screen.say(f"  done: {do()}")
    except (OSError, EdgeDaemonError, ImportError) as error:
        screen.say(f"  this did not work: {error}")
        return False
    return True
