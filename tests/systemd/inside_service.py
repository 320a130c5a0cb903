"""Proves the unit in a real systemd, with Debian's mosquitto: run by test_service.py, inside run-in-systemd.sh.

Installs the unit as a machine would have it, then goes through PROOFS in order; each is one line of output,
`ok NAME` or `FAILED NAME: why`. Every wait is bounded. Everything it changes vanishes with the machine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import psutil

from edge_daemon import exit_codes
from edge_daemon.clock import kernel_says
from edge_daemon.demo import scenes
from tests.integration.service import BASE, NODE, PATIENCE_S, Heard, Subscriber, subscribed, wait_for

CHECKOUT = Path(__file__).parents[2]
UNIT = "edge-daemon.service"
VENV = Path("/opt/edge-daemon/current")
CONFIG = Path("/etc/edge-daemon/config.yaml")
ENDED = "the daemon ended:"
"""Begins the line that the test's drop-in has systemd write whenever the daemon has ended, however it did."""
INBOX = Path("/srv/pictures")
DROP_INS = Path(f"/etc/systemd/system/{UNIT}.d")
BROKER_PORT = 1883
BROKER_LOG = Path("/var/log/mosquitto/mosquitto.log")
FROM_BEFORE = ("/etc/edge-daemon", "/var/lib/edge-daemon", "/var/lib/private/edge-daemon", str(INBOX), str(DROP_INS))
HIDDEN = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")
"""Where the unit's ProtectHome and PrivateTmp, or the permissions of a home, show its user nothing."""
RESULT_SCHEMA = CHECKOUT / "configs/result.schema.json"
YAML = f"""\
node: {NODE}
model:
  name: {{model}}
sources:
  inbox:
    type: folder
    path: {INBOX}
    settle_s: 0.2
"""


def run(*argv: str, check: bool = True) -> str:
    """Standard output of a command. Raises CalledProcessError or TimeoutExpired."""
    return subprocess.run(argv, check=check, timeout=PATIENCE_S, stdout=subprocess.PIPE, text=True).stdout


def show(name: str) -> str:
    """One property of the unit."""
    return run("systemctl", "show", "-P", name, UNIT).strip()


def main_process() -> psutil.Process:
    """The daemon. Raises AssertionError when there is none."""
    pid = int(show("MainPID"))
    assert pid, "the unit has no main process"
    return psutil.Process(pid)


def child(module: str) -> psutil.Process | None:
    """The daemon's child that runs this module."""
    found = [p for p in children(main_process()) if module in p.cmdline()]
    return found[0] if found else None


def children(process: psutil.Process) -> list[psutil.Process]:
    """All that descend from it."""
    found: list[psutil.Process] = process.children(recursive=True)
    return found


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def journal() -> str:
    """What systemd and the unit have written."""
    run("journalctl", "--sync")
    return run("journalctl", "--no-pager", "-o", "cat", "-u", UNIT)


def first(subscriber: Subscriber, topic: str, wish: Callable[[Heard], bool], since: int = 0) -> Heard:
    """The first message of a topic that fulfils a wish. Raises AssertionError when none comes."""

    def probe() -> Heard | None:
        with subscriber.lock:
            heard = [m for m in subscriber.messages[since:] if m.topic == f"{BASE}/{topic}" and wish(m)]
        return heard[0] if heard else None

    return wait_for(f"the message wished for on {BASE}/{topic}", probe)


def document(message: Heard) -> dict[str, Any]:
    """A payload that is a JSON object."""
    found: dict[str, Any] = json.loads(message.payload)
    return found


class Machine:
    """The unit's folder, and what is heard of the unit."""

    def __init__(self, heard: Subscriber, pictures: Path) -> None:
        self.heard = heard
        self._pictures = iter(scenes.sample_pictures(pictures, count=12, seed=1))

    def now(self) -> int:
        """A place in what is heard, for `first`."""
        return len(self.heard.messages)

    def drop_next_picture(self) -> str:
        """Into the folder; its name."""
        picture, _ = next(self._pictures)
        shutil.copy(picture, INBOX)
        return picture.name

    def caption_of_next_picture(self) -> Heard:
        """Drop a picture in. Raises AssertionError when its caption does not come."""
        since, name = self.now(), self.drop_next_picture()
        caption = first(self.heard, "inbox/caption", lambda m: document(m)["file"] == name, since)
        assert document(caption)["caption"].strip(), f"no words: {document(caption)}"
        return caption

    def comes_back(self, since: int) -> None:
        """After `since` the will was sent, the next daemon is online and captions. Raises AssertionError."""
        will = first(self.heard, "availability", lambda m: m.payload == b"offline", since)
        at = self.heard.messages.index(will, since)
        goodbyes = [m.topic for m in self.heard.messages[since:at] if m.payload == b"offline"]
        assert not goodbyes, f"whoever says goodbye has no will: {goodbyes}"
        first(self.heard, "availability", lambda m: m.payload == b"online", at)
        wait_for("the unit is active", lambda: show("ActiveState") == "active")
        self.caption_of_next_picture()


def active_only_after_ready(machine: Machine) -> None:
    """The worker is frozen while it loads, as if the SD card were slow; the unit waits for it."""
    run("systemctl", "start", "--no-block", UNIT)
    wait_for("the unit has a main process", lambda: show("MainPID") != "0")
    worker = wait_for("a worker", lambda: child("edge_daemon.worker"))
    worker.suspend()
    first(machine.heard, "health", lambda m: document(m)["state"] == "starting")
    wait_for("the status line", lambda: show("StatusText").startswith("starting"))
    assert show("ActiveState") == "activating", show("ActiveState")
    worker.resume()
    wait_for("the unit is active", lambda: show("ActiveState") == "active")
    first(machine.heard, "health", lambda m: document(m)["state"] == "ok")
    wait_for("the status line", lambda: show("StatusText").startswith("ok"))


def powerless(machine: Machine) -> None:
    """The daemon is nobody special, and when memory runs out its children go first."""
    daemon = main_process()
    wait_for("a grabber", lambda: child("edge_daemon.grabber"))
    assert daemon.uids().effective != 0
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    powers = [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")]
    assert (powers, status["NoNewPrivs"], status["Seccomp"]) == ([0] * 4, "1", "2")
    scores = {p.pid: int(Path(f"/proc/{p.pid}/oom_score_adj").read_text()) for p in [daemon, *children(daemon)]}
    first_to_go = sorted(scores, key=lambda pid: -scores[pid])
    worker, grabber = (child(f"edge_daemon.{name}") for name in ("worker", "grabber"))
    assert worker is not None
    assert grabber is not None
    assert first_to_go == [worker.pid, grabber.pid, daemon.pid], scores


def picture_is_captioned(machine: Machine) -> None:
    """In the folder, and on the broker: retained, with QoS 1, as a result is documented."""
    heard = machine.caption_of_next_picture()
    jsonschema.validate(document(heard), json.loads(RESULT_SCHEMA.read_text()))
    assert heard.qos == 1, f"QoS {heard.qos}"
    with subscribed(BROKER_PORT) as late:
        kept = first(late, "inbox/caption", lambda m: m.retain)
        words = first(late, "inbox/caption/text", lambda m: m.retain)
    assert document(kept)["id"] == document(heard)["id"]
    assert words.payload.decode() == document(heard)["caption"]


def worker_killed(machine: Machine) -> None:
    """The unit does not notice; whoever reads health does."""
    daemon, since = main_process(), machine.now()
    worker = wait_for("a worker", lambda: child("edge_daemon.worker"))
    worker.kill()
    machine.caption_of_next_picture()
    first(machine.heard, "health", lambda m: "SIGKILL" in document(m)["worker"]["last_death"], since)
    assert (show("ActiveState"), main_process(), show("NRestarts")) == ("active", daemon, "0")
    assert gone(worker)


def daemon_killed(machine: Machine) -> None:
    """The next one is started; nothing of the dead one is left."""
    daemon, since = main_process(), machine.now()
    orphans = children(daemon)
    assert len(orphans) == 2, f"a worker and a grabber were expected: {orphans}"
    daemon.kill()
    machine.comes_back(since)
    assert show("NRestarts") == "1", f"restarts: {show('NRestarts')}"
    assert all(map(gone, [daemon, *orphans])), orphans


def daemon_frozen(machine: Machine) -> None:
    """Nobody feeds the watchdog; systemd notices."""
    (DROP_INS / "watchdog.conf").write_text("[Service]\nWatchdogSec=6\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    daemon, since = main_process(), machine.now()
    daemon.suspend()
    machine.comes_back(since)
    # ABRT is sent; SEGV where Python's faulthandler stumbles while it writes down what other threads were doing
    assert re.search(f"{re.escape(ENDED)} watchdog killed (ABRT|SEGV)", journal())
    assert gone(daemon)


def stopped(machine: Machine) -> None:
    """A goodbye in the daemon's own words: the broker has no will to send."""
    since, logged = machine.now(), len(BROKER_LOG.read_bytes())
    processes = [main_process(), *children(main_process())]
    before = journal()
    run("systemctl", "stop", UNIT)
    assert f"{ENDED} success exited 0" in journal().removeprefix(before), "the daemon did not end well"
    assert show("ActiveState") == "inactive"
    first(machine.heard, "availability", lambda m: m.payload == b"offline", since)
    goodbyes = [m.topic for m in machine.heard.messages[since:] if m.payload == b"offline"]
    assert goodbyes == [f"{BASE}/inbox/availability", f"{BASE}/availability"], goodbyes
    broker = BROKER_LOG.read_bytes()[logged:].decode()
    assert re.search(rf"Client edge-daemon-{NODE}-[0-9a-f]{{8}} disconnected\.", broker), broker
    with subscribed(BROKER_PORT) as late:
        assert first(late, "availability", lambda m: m.retain).payload == b"offline"
    assert all(map(gone, processes)), processes


def imported_model(machine: Machine) -> None:
    """What root imports, the unit's own user runs: here a moonfile's graphs, by ONNX Runtime in the unit's sandbox."""
    command = (sys.executable, "-m", "edge_daemon", "model")
    run(*command, "export", "demo-shapes", "/run/shapes.mf", "--format", "moonfile", "--precision", "int8")
    run(*command, "import", "/run/shapes.mf", "--name", "imported", "--engine", "onnx")
    CONFIG.write_text(YAML.format(model="imported"))
    run("systemctl", "start", UNIT)
    said = document(machine.caption_of_next_picture())
    assert (said["model"], said["engine"], said["precision"]) == ("imported", "onnx", "int8"), said
    run("systemctl", "stop", UNIT)


def asks_the_clock(machine: Machine) -> None:
    """What runs in the unit's sandbox may ask the kernel whether its clock is kept, and may not set it."""
    code = "import time; from edge_daemon.clock import kernel_says; print('the clock is kept:', kernel_says())"
    code += "; time.clock_settime(time.CLOCK_REALTIME, time.time())"
    lines = ["[Service]", "Type=oneshot", "Restart=no", "ExecStart=", f'ExecStart={VENV}/bin/python -c "{code}"']
    (DROP_INS / "clock.conf").write_text("\n".join(lines))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", UNIT, check=False)
    (DROP_INS / "clock.conf").unlink()
    run("systemctl", "daemon-reload")
    assert kernel_says() is not None
    assert f"the clock is kept: {kernel_says()}" in journal(), "it may not be asked"
    assert "PermissionError: [Errno 1] Operation not permitted" in journal(), "it may be set"


def broken_configuration(machine: Machine) -> None:
    """Exit code 78, the place in the journal, and no second try."""
    lines = CONFIG.read_text().splitlines()
    line = 1 + next(n for n, text in enumerate(lines) if "settle_s" in text)
    CONFIG.write_text("\n".join(lines).replace("settle_s", "setle_s"))
    run("systemctl", "start", UNIT, check=False)
    outcome = [show(name) for name in ("ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts")]
    assert outcome == ["failed", "failed", "exit-code", str(exit_codes.CONFIG), "0"], outcome
    assert f"{CONFIG}:{line}:5: sources.inbox.setle_s" in journal(), "the journal does not name the place"


PROOFS: tuple[Callable[[Machine], None], ...] = (
    active_only_after_ready,
    powerless,
    picture_is_captioned,
    worker_killed,
    daemon_killed,
    daemon_frozen,
    stopped,
    imported_model,
    asks_the_clock,
    broken_configuration,
)
"""In this order: each begins where the one before it ends."""


def install(model: str) -> None:
    """The unit and what it names, as on a Pi; a drop-in for what only a developer's machine needs."""
    for path in FROM_BEFORE:
        shutil.rmtree(path, ignore_errors=True)
    for directory in (VENV, CONFIG.parent, INBOX, DROP_INS):
        directory.mkdir(parents=True)
    run("mount", "--bind", sys.prefix, str(VENV))
    shutil.copy(CHECKOUT / "systemd" / UNIT, f"/etc/systemd/system/{UNIT}")
    CONFIG.write_text(YAML.format(model=model))
    (DROP_INS / "test.conf").write_text(drop_in())
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "mosquitto.service")


def drop_in() -> str:
    """A short pause, a witness, and the developer's interpreter and checkout, which may be in a home."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), CHECKOUT}
    hidden = [path for path in needed if any(path.is_relative_to(place) for place in HIDDEN)]
    lines = [f"BindReadOnlyPaths={path}" for path in hidden]
    if hidden:
        lines.append("ProtectHome=tmpfs")
    witness = f"ExecStopPost=/bin/echo {ENDED} ${{SERVICE_RESULT}} ${{EXIT_CODE}} ${{EXIT_STATUS}}"
    return "\n".join(["[Service]", "RestartSec=1", witness, *lines, ""])


def main(model: str) -> int:
    """Go through all proofs; the number of those that failed."""
    if not Path("/run/ris").is_dir():
        sys.exit("only inside run-in-systemd.sh: this clears directories")
    install(model)
    with subscribed(BROKER_PORT) as heard:
        return go_through(PROOFS, Machine(heard, Path("/run/pictures")))


def go_through(proofs: Sequence[Callable[[Machine], None]], machine: Machine) -> int:
    """One after the other, each with a line of output; the number of those that failed."""
    failures = 0
    for proof in proofs:
        start_s = time.monotonic()
        try:
            proof(machine)
        except (AssertionError, subprocess.SubprocessError, psutil.Error) as error:
            failures += 1
            print(f"FAILED {proof.__name__}: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print(f"ok {proof.__name__} ({time.monotonic() - start_s:.1f} s)", flush=True)
    if failures:
        print(*journal().splitlines()[-80:], sep="\n")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
