"""What systemd knows of the service: its state, and what it died of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edge_daemon import drop_in, exit_codes, subcommand, unit_command
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject, Unit

PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus", "NRestarts", "MainPID"),
    *("User", "DynamicUser", "SupplementaryGroups", "PrivateTmp", "ProtectHome", "PrivateDevices", "BindReadOnlyPaths"),
    *("UnitFileState", "NeedDaemonReload", "StatusText", "Environment"),
)
DEADLINE_S = 10.0
LINES = 5
HIDES = ("yes", "tmpfs")
"""Values of PrivateTmp=, ProtectHome= and PrivateDevices=."""


def name_of(config: Path) -> str:
    """The unit that runs a configuration; the main one for a file that no instance would find."""
    path, default = config.absolute(), subcommand.DEFAULT_CONFIG
    return unit_command.unit_of(path if path.parent == default.parent else default).removesuffix(".service")


def read(run: Path, name: str) -> Unit:
    """Of the running systemd; nothing where there is none."""
    wanted = f"--property={','.join(PROPERTIES)}"
    return Unit(parsed(said(run, "systemctl", "show", f"{name}.service", "--no-pager", wanted)), name)


def parsed(text: str) -> dict[str, str]:
    """Of `systemctl show`."""
    return {key: value for key, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def look(subject: Subject) -> Iterator[Finding]:
    """State, what it hides from the service of what is no source's, and the last lines of the journal."""
    values = subject.unit.values
    if not values:
        yield skipped("unit", "no systemd runs here")
        return
    yield state(subject.unit)
    for key, path in drop_in.paths(subject.config) if subject.config else ():
        if not key.startswith("sources.") and (setting := hiding(subject.unit, path)):
            yield concealed(f"unit.{key}", f"{key}, {path},", setting, subject.unit)
    if subject.unit.is_installed and shutil.which("journalctl"):
        name = subject.unit.name
        wanted = ("-u", f"{name}.service", "-o", "short-iso", "-p", "warning", "-n", str(LINES))
        yield journal(said(subject.places.run, "journalctl", "--no-pager", *wanted), name)


def hiding(unit: Unit, path: Path) -> str:
    """The unit's setting that keeps a path from the service; empty when it sees it."""
    if unit.shows(path):
        return ""
    for setting, places in (("PrivateTmp", drop_in.TEMPORARY), ("ProtectHome", drop_in.HOMES)):
        if unit.values.get(setting) in HIDES and drop_in.below(path, places):
            return setting
    return ""


def concealed(id: str, what: str, setting: str, unit: Unit) -> Finding:
    """What is there, and not for the service."""
    meaning = "The unit hides everything that the service does not need; what this configuration needs must be allowed."
    told = f"sudo edge-daemon systemd render{unit.config_option} --write"
    return problem(id, f"{what} is hidden from the service by {setting}= of its unit", meaning, told)


def state(unit: Unit) -> Finding:
    """By the properties."""
    values, name = unit.values, unit.name
    if values.get("LoadState") != "loaded":
        return warning(
            "unit",
            f"there is no unit {name} ({values.get('LoadState', 'unknown')})",
            "The service runs only while somebody runs it in the foreground, and not after the board restarts.",
            "sudo deploy/install.sh",
        )
    active, restarts = values.get("ActiveState", ""), values.get("NRestarts", "0")
    what = f"{active} ({values.get('SubState', '')}), {restarts} restarts"
    if values.get("ExecMainStatus") == str(exit_codes.CONFIG) and active != "active":
        meaning = (
            "It ended with exit status 78: the configuration is wrong, or the model cannot run here. "
            "It is not started again."
        )
        return problem(
            "unit", what, meaning, f"edge-daemon check-config{unit.config_option}; sudo systemctl restart {name}"
        )
    if active == "failed" or values.get("SubState") == "auto-restart":
        meaning = (
            f"It ended ({values.get('Result', '')}, status {values.get('ExecMainStatus', '')}); the journal says why."
        )
        return problem("unit", what, meaning, f"journalctl -u {name} -n 50")
    if values.get("NeedDaemonReload") == "yes":
        meaning = "The unit's file has changed since systemd read it."
        return warning("unit", what, meaning, f"sudo systemctl daemon-reload && sudo systemctl restart {name}")
    if active != "active" and active != "activating":
        return warning("unit", what, "The service is not running.", f"sudo systemctl enable --now {name}")
    if values.get("UnitFileState") == "disabled":
        meaning = "It is running, but does not start with the board."
        return warning("unit", f"{what}, disabled", meaning, f"sudo systemctl enable {name}")
    if int(restarts or 0) > 0:
        meaning = "It has crashed or ended by itself; the journal says why."
        return warning("unit", what, meaning, f"journalctl -u {name} -p warning")
    return ok("unit", f"{what}. {values.get('StatusText', '')}".rstrip(". "))


def journal(text: str, name: str) -> Finding:
    """Its last warnings and errors; journalctl says in words that there are none."""
    if not text:
        return skipped("journal", "this user may not read it, or it does not answer")
    lines = [line for line in text.splitlines() if not line.startswith("-- ")]
    if not lines:
        return ok("journal", "no warnings or errors")
    said = "\n".join(lines[-LINES:])
    return warning(
        "journal",
        f"the last warnings of {name}:\n{said}",
        "The service's own words.",
        f"journalctl -u {name} -p warning",
    )


def said(run: Path, program: str, *arguments: str) -> str:
    """What a program of systemd says; nothing where no systemd runs, and when it fails or hangs."""
    if not (run / "systemd/system").is_dir():
        return ""
    argv = [program, *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
