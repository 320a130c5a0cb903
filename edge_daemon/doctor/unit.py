"""What systemd knows of the service: its state, and what it died of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edge_daemon import unit_files
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject, Unit

NAME = "edge-daemon"
PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus", "NRestarts", "MainPID"),
    *("User", "DynamicUser", "SupplementaryGroups", "PrivateTmp", "ProtectHome", "PrivateDevices", "BindReadOnlyPaths"),
    *("UnitFileState", "NeedDaemonReload", "StatusText"),
)
DEADLINE_S = 10.0
LINES = 5
CONFIG_STATUS = "78"
HIDES = ("yes", "tmpfs")
"""Values of PrivateTmp=, ProtectHome= and PrivateDevices=."""


def read(run: Path) -> Unit:
    """Of the running systemd; nothing where there is none."""
    return Unit(parsed(said(run, "systemctl", "show", NAME, "--no-pager", f"--property={','.join(PROPERTIES)}")))


def parsed(text: str) -> dict[str, str]:
    """Of `systemctl show`."""
    return {key: value for key, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def look(subject: Subject) -> Iterator[Finding]:
    """State, what it hides from the service of what is no source's, and the last lines of the journal."""
    values = subject.unit.values
    if not values:
        yield skipped("unit", "no systemd runs here")
        return
    yield state(values)
    for key, path in unit_files.paths(subject.config) if subject.config else ():
        if not key.startswith("sources.") and (setting := hiding(subject.unit, path)):
            yield concealed(f"unit.{key}", f"{key}, {path},", setting)
    if subject.unit.is_installed and shutil.which("journalctl"):
        wanted = ("-u", NAME, "-o", "short-iso", "-p", "warning", "-n", str(LINES))
        yield journal(said(subject.places.run, "journalctl", "--no-pager", *wanted))


def hiding(unit: Unit, path: Path) -> str:
    """The unit's setting that keeps a path from the service; empty when it sees it."""
    if unit.shows(path):
        return ""
    for setting, places in (("PrivateTmp", unit_files.TEMPORARY), ("ProtectHome", unit_files.HOMES)):
        if unit.values.get(setting) in HIDES and unit_files.below(path, places):
            return setting
    return ""


def concealed(id: str, what: str, setting: str) -> Finding:
    """What is there, and not for the service."""
    meaning = "The unit sees nothing that it does not need; what this configuration needs it has to be told."
    told = "sudo edge-daemon systemd render --write"
    return problem(id, f"{what} is hidden from the service by {setting}= of its unit", meaning, told)


def state(values: dict[str, str]) -> Finding:
    """By the properties."""
    if values.get("LoadState") != "loaded":
        return warning(
            "unit",
            f"there is no unit {NAME} ({values.get('LoadState', 'unknown')})",
            "The service runs only as long as somebody has it in the foreground, and not after a restart of the board.",
            f"sudo cp systemd/{NAME}.service /etc/systemd/system/ && sudo systemctl enable --now {NAME}",
        )
    active, restarts = values.get("ActiveState", ""), values.get("NRestarts", "0")
    what = f"{active} ({values.get('SubState', '')}), {restarts} restarts"
    if values.get("ExecMainStatus") == CONFIG_STATUS and active != "active":
        meaning = "It ended with exit status 78: the configuration is wrong, or the model cannot run here. It stays so."
        return problem("unit", what, meaning, f"edge-daemon check-config; sudo systemctl restart {NAME}")
    if active == "failed" or values.get("SubState") == "auto-restart":
        meaning = (
            f"It ended ({values.get('Result', '')}, status {values.get('ExecMainStatus', '')}); the journal says why."
        )
        return problem("unit", what, meaning, f"journalctl -u {NAME} -n 50")
    if values.get("NeedDaemonReload") == "yes":
        meaning = "The unit's file has changed since systemd read it."
        return warning("unit", what, meaning, f"sudo systemctl daemon-reload && sudo systemctl restart {NAME}")
    if active != "active" and active != "activating":
        return warning("unit", what, "The service does not run.", f"sudo systemctl enable --now {NAME}")
    if values.get("UnitFileState") == "disabled":
        meaning = "It runs, but is not started with the board."
        return warning("unit", f"{what}, disabled", meaning, f"sudo systemctl enable {NAME}")
    if int(restarts or 0) > 0:
        meaning = "It has ended by itself; the journal says why."
        return warning("unit", what, meaning, f"journalctl -u {NAME} -p warning")
    return ok("unit", f"{what}. {values.get('StatusText', '')}".rstrip(". "))


def journal(text: str) -> Finding:
    """Its last warnings and errors; journalctl says in words that there are none."""
    if not text:
        return skipped("journal", "this user may not read it, or it does not answer")
    lines = [line for line in text.splitlines() if not line.startswith("-- ")]
    if not lines:
        return ok("journal", "no warnings and errors")
    said = "\n".join(lines[-LINES:])
    return warning(
        "journal",
        f"the last warnings of {NAME}:\n{said}",
        "The service's own words.",
        f"journalctl -u {NAME} -p warning",
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
