"""What the doctor says of a unit in a real systemd: run by test_doctor.py, inside run-in-systemd.sh.

As in inside_service.py, each proof is one line of output. The unit is ours in name only: a program that ends as wished.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

UNIT_FILE = Path("/etc/systemd/system/edge-daemon.service")
INSTANCES = UNIT_FILE.with_name("edge-daemon@.service")
PORCH = Path("/etc/edge-daemon/porch.yaml")
UNIT = """\
[Service]
Type=exec
DynamicUser=yes
User=edge-daemon
SupplementaryGroups=video
PrivateTmp=yes
PrivateDevices=yes
StateDirectory=edge-daemon
ExecStart=/bin/sh -c {command!r}
"""
CONFIG = """\
model: {name: demo-shapes}
sources:
  inbox: {type: folder, path: /tmp/inbox}
  usb: {type: v4l2}
"""
ENDS_WITH_CONFIG = "echo '<3>model.name: nothing of that name, password=my-precious' >&2; exit 78"
STAYS = "sleep 600"
LONGEST_S = 60.0


def run(*argv: str) -> str:
    """What a program says."""
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=LONGEST_S).stdout


def doctor(directory: Path, config: str | Path = "c.yaml") -> dict[str, dict[str, str]]:
    """Its findings by their ids; without torch, which others try."""
    argv = [sys.executable, "-m", "edge_daemon", "doctor", "-c", str(directory / config), "--json", "--no-caption"]
    findings = json.loads(run("env", f"PYTHONPATH={directory}", *argv))["findings"]
    return {finding["id"]: finding for finding in findings}


def start(command: str, state: str, file: Path = UNIT_FILE, unit: str = "edge-daemon", more: str = "") -> None:
    """Install the unit with this command, start it, wait until systemd says that it is in this state."""
    file.write_text(UNIT.format(command=command) + more)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", unit)
    end_s = time.monotonic() + LONGEST_S
    while run("systemctl", "is-active", unit).strip() != state and time.monotonic() < end_s:
        time.sleep(0.05)
    run("journalctl", "--sync")


def no_unit(directory: Path) -> None:
    """Nothing is installed yet."""
    found = doctor(directory)
    assert found["unit"]["state"] == "warning", found["unit"]
    assert "there is no unit" in found["unit"]["what"]
    assert found["unit"]["command"] == "sudo deploy/install.sh"


def ended_with_78(directory: Path) -> None:
    """Its state, its last words without a secret, and what it may not see."""
    start(ENDS_WITH_CONFIG, "failed")
    found = doctor(directory)
    assert (found["unit"]["state"], "78" in found["unit"]["meaning"]) == ("problem", True), found["unit"]
    assert "nothing of that name, password=•••" in found["journal"]["what"], found["journal"]
    assert "PrivateTmp" in found["source.inbox"]["what"]
    assert "PrivateDevices" in found["source.usb"]["what"]


def runs(directory: Path) -> None:
    """Then its process is known, and its state directory is systemd's."""
    start(STAYS, "active")
    found = doctor(directory)
    assert found["unit"]["what"].startswith("active (running)"), found["unit"]
    assert "systemd gives /var/lib/edge-daemon to edge-daemon" in found["state"]["what"], found["state"]
    assert found["model.memory"]["what"].startswith("the service (process "), found["model.memory"]


def an_instance(directory: Path) -> None:
    """Of its configuration, while the other one has failed: its state, its journal, its state directory."""
    start(ENDS_WITH_CONFIG, "failed")
    PORCH.parent.mkdir(exist_ok=True)
    PORCH.write_text(CONFIG)
    state_dir = "Environment=EDGE_DAEMON_STATE_DIR=%S/edge-daemon-%i\n"
    start(f"echo '<4>of the porch' >&2; {STAYS}", "active", INSTANCES, "edge-daemon@porch", state_dir)
    found = doctor(directory, PORCH)
    assert found["unit"]["what"].startswith("active (running)"), found["unit"]
    assert "of the porch" in found["journal"]["what"], found["journal"]
    assert "nothing of that name" not in found["journal"]["what"], found["journal"]
    assert "systemd gives /var/lib/edge-daemon-porch to edge-daemon" in found["state"]["what"], found["state"]


PROOFS: tuple[Callable[[Path], None], ...] = (no_unit, ended_with_78, runs, an_instance)


def main() -> int:
    """All proofs; the number that failed."""
    directory = Path("/run/edge-daemon-doctor")
    directory.mkdir()
    (directory / "c.yaml").write_text(CONFIG)
    (directory / "torch.py").write_text("raise ImportError\n")
    failed = 0
    for proof in PROOFS:
        start_s = time.monotonic()
        try:
            proof(directory)
        except (AssertionError, KeyError, ValueError) as error:
            failed += 1
            print(f"FAILED {proof.__name__}: {error!r}", flush=True)
        else:
            print(f"ok {proof.__name__} [{time.monotonic() - start_s:.1f} s]", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
