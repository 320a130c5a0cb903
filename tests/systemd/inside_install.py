"""Proves install.sh, upgrade.sh and uninstall.sh on a fresh machine: run by inside_package.py, before its own proofs.

As in inside_service.py each proof is one line of output, and begins where the one before it ends. The wheels are those
of wheelhouse.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.integration.service import NODE, PATIENCE_S, Subscriber, wait_for
from tests.systemd import wheelhouse
from tests.systemd.inside_service import (
    BROKER_PORT,
    CHECKOUT,
    HIDDEN,
    INBOX,
    UNIT,
    Machine,
    journal,
    run,
    show,
)

OPT, ETC, STATE = Path("/opt/edge-daemon"), Path("/etc/edge-daemon"), Path("/var/lib/edge-daemon")
UNITS = Path("/etc/systemd/system")
WHEELS, DOCTORED = Path("/run/wheels"), Path("/run/doctored")
FORBIDDEN_PORT = 18999
PROBE = Path("/usr/local/lib/probe.py")
PROBED = "probe.service"
LOOK = f"""\
import json, os, pathlib, socket
def attempt(what):
    try:
        return str(what())
    except OSError as error:
        return type(error).__name__
def connect(host, port):
    with socket.create_connection((host, port), timeout=2):
        return "connected"
write = lambda path: pathlib.Path(path).write_text("x")
print("PROBE" + json.dumps({{
    "home": attempt(lambda: pathlib.Path("/home/pi/secret").read_text()),
    "homes": attempt(lambda: os.listdir("/home")),
    "credential": attempt(lambda: pathlib.Path("{ETC}/credentials/mqtt-password").read_text()),
    "written": [path for path in ("/etc/x", "{INBOX}/x", "{OPT}/x", "{ETC}/x", "/usr/x", "/srv/x", "/home/x")
                if attempt(lambda: write(path)) == "1"],
    "state": attempt(lambda: write(os.environ["STATE_DIRECTORY"] + "/probed")),
    "broker": attempt(lambda: connect("127.0.0.1", {BROKER_PORT})),
    "elsewhere": attempt(lambda: connect("127.0.0.2", {FORBIDDEN_PORT})),
}}))
"""


def deploy(script: str, *arguments: str, expected: int = 0) -> str:
    """Run a script of deploy/; what it said."""
    return said_by(str(CHECKOUT / "deploy" / script), *arguments, expected=expected)


def said_by(*argv: str, expected: int = 0, **settings: str) -> str:
    """Run a command that installs, with these settings in its environment. Raises AssertionError at another status."""
    done = subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"], "HOME": "/root", "PIP_CONFIG_FILE": os.devnull, "STAYS_S": "1", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == expected, f"{argv} ended with {done.returncode}: {done.stdout[-1500:]}"
    return done.stdout


def wheels_with(*wheels: Path) -> str:
    """A wheelhouse with one of ours only."""
    for wheel in WHEELS.glob("edge_daemon-*.whl"):
        wheel.unlink()
    for wheel in wheels:
        shutil.copy(wheel, WHEELS)
    return str(WHEELS)


def doctored(version: str, **appended: str) -> Path:
    """Our wheel as another version, with lines at the end of modules."""
    files = {f"edge_daemon/{module}.py": text for module, text in appended.items()}
    return wheelhouse.doctored(next(DOCTORED.glob("edge_daemon-0.*.whl")), DOCTORED, version, files)


def leftovers() -> list[str]:
    """All that has our name, but for what is there without an installation."""
    places = (
        "/etc",
        "/opt",
        "/usr/local",
        "/usr/share",
        "/usr/lib/systemd",
        "/usr/bin",
        "/var/lib",
        "/var/spool",
        "/srv",
    )
    found = run("find", *places, "-xdev", "-name", "*edge-daemon*", "-not", "-path", "/var/lib/dpkg/*").split()
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if line.startswith("edge-daemon:")]
    return found + users


def state_of_the_machine() -> dict[str, object]:
    """What a second installation must not touch."""
    files = [path for top in (ETC, UNITS, OPT) for path in sorted(top.rglob("*")) if "__pycache__" not in path.parts]
    kept: dict[str, object] = {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in files}
    kept["run"] = show("InvocationID")
    kept["/usr/local/bin"] = os.readlink("/usr/local/bin/edge-daemon")
    return kept


def current() -> str:
    return os.readlink(OPT / "current")


# ---- the installer ----------------------------------------------------------------------------------------


def dry_run(_: Machine) -> None:
    """It says what it would do, and does nothing."""
    said = deploy("install.sh", "--dry-run", "--wheelhouse", str(WHEELS))
    assert "would: make /opt/edge-daemon/0." in said, said
    assert "would: write /etc/edge-daemon/config.yaml" in said, said
    assert not leftovers()


def another_torch_is_refused(_: Machine) -> None:
    said = deploy("install.sh", "--torch", "2.10.0", "--yes", expected=69)
    assert "2.13.0 is the one for x86_64" in said or "2.9.1 is the one for aarch64" in said, said
    assert not leftovers()


def not_strict_is_not_started(_: Machine) -> None:
    """The broker's name has no address now, so the network cannot be closed."""
    options = ("--yes", "--no-packages", "--wheelhouse", str(WHEELS), "--broker", "broker.invalid", "--strict")
    said = deploy("install.sh", *options, expected=69)
    assert "it has no known address now" in said, said
    assert "--allow the network" in said, said
    assert show("ActiveState") == "inactive"
    assert run("systemctl", "is-enabled", UNIT, check=False).strip() == "disabled"
    (ETC / "config.yaml").unlink()


def installed(machine: Machine) -> None:
    """One command, and the service captions, under the strict profile."""
    password = Path("/run/password")
    password.write_text("hush\n")
    options = ("--broker", "localhost", "--broker-user", "pi", "--broker-password-file", str(password), "--strict")
    deploy("install.sh", "--yes", "--no-packages", "--wheelhouse", str(WHEELS), "--pictures", str(INBOX), *options)
    assert show("ActiveState") == "active"
    assert set(show("IPAddressDeny").split()) == {"::/0", "0.0.0.0/0"}
    rendered = (UNITS / f"{UNIT}.d/50-configuration.conf").read_text()
    assert "\nLoadCredential=mqtt-password:/etc/edge-daemon/credentials/mqtt-password\n" in rendered, rendered
    machine.caption_of_next_picture()


def again_changes_nothing(_: Machine) -> None:
    before = state_of_the_machine()
    said = deploy("install.sh", "--yes", "--no-packages", "--wheelhouse", str(WHEELS), "--pictures", str(INBOX))
    after = state_of_the_machine()
    assert "nothing had to be changed" in said, said
    assert after == before, {
        key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)
    }


def reloaded(_: Machine) -> None:
    """`systemctl reload`: the same process reads the configuration again."""
    before = show("MainPID")
    run("systemctl", "reload", UNIT)
    wait_for("the journal says so", lambda: "the configuration was reloaded" in journal())
    assert (show("MainPID"), show("ActiveState")) == (before, "active")


def confined(_: Machine) -> None:
    """A process in the unit reads no home, writes nothing but its state, and reaches nobody but the broker."""
    secret = Path("/home/pi/secret")
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("secret")
    secret.parent.chmod(0o755)
    PROBE.parent.mkdir(parents=True, exist_ok=True)
    PROBE.write_text(LOOK)
    shutil.copy(UNITS / UNIT, UNITS / PROBED)
    shutil.copytree(UNITS / f"{UNIT}.d", UNITS / f"{PROBED}.d")
    (UNITS / f"{PROBED}.d/probe.conf").write_text(
        f"[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart=/usr/bin/python3 {PROBE}\n"
    )
    run("systemctl", "daemon-reload")
    with subprocess.Popen(
        ["/usr/bin/python3", "-m", "http.server", "--bind", "0.0.0.0", str(FORBIDDEN_PORT)], stderr=subprocess.DEVNULL
    ) as server:
        wait_for("a server", lambda: run("ss", "-Hltn", f"sport = :{FORBIDDEN_PORT}"))
        try:
            found = probe()
            if found["elsewhere"] == "connected":
                print(f"missing confined: this kernel has no filter of addresses: {found}", flush=True)
            (UNITS / f"{PROBED}.d/open.conf").write_text("[Service]\nIPAddressDeny=\nIPAddressAllow=\nProtectHome=no\n")
            run("systemctl", "daemon-reload")
            opened = probe()
        finally:
            server.kill()
    for path in (UNITS / f"{PROBED}.d", UNITS / PROBED, PROBE, secret.parent):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"  a process in the unit: {found}", flush=True)
    (STATE / "probed").unlink()
    errors = {found.pop(key) for key in ("home", "homes", "credential")}
    assert errors == {"PermissionError"}, errors
    del found["elsewhere"]
    assert found == {"written": [], "state": "1", "broker": "connected"}, found
    # the probe can fail: what it could not do is possible without the profile
    assert (opened["home"], opened["elsewhere"]) == ("secret", "connected"), opened


def probe() -> dict[str, object]:
    """What a process in the probe's unit sees."""
    run("systemctl", "start", PROBED)
    run("journalctl", "--sync")
    lines = run("journalctl", "--no-pager", "-o", "cat", "-u", PROBED).splitlines()
    said: dict[str, object] = json.loads([line for line in lines if line.startswith("PROBE")][-1].removeprefix("PROBE"))
    return said


def two_instances(_: Machine) -> None:
    """A second configuration runs beside the first, with a state of its own."""
    (ETC / "second.yaml").write_text((ETC / "config.yaml").read_text().replace("mqtt:", "node: second\nmqtt:", 1))
    run("edge-daemon", "systemd", "render", "-c", str(ETC / "second.yaml"), "--strict", "--write")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "edge-daemon@second")
    online = run("mosquitto_sub", "-C", "1", "-t", "edge-daemon/second/availability")
    assert online.strip() == "online", online
    assert (Path("/var/lib/edge-daemon-second/outbox.db")).exists()
    assert show("ActiveState") == "active"
    run("systemctl", "stop", "edge-daemon@second")
    (ETC / "second.yaml").unlink()
    Path("/var/lib/edge-daemon-second").unlink()
    shutil.rmtree("/var/lib/private/edge-daemon-second")
    shutil.rmtree(UNITS / "edge-daemon@second.service.d")
    run("systemctl", "daemon-reload")


def model_on_a_late_disk(_: Machine) -> None:
    """It is mounted after everything else, as by `nofail` in fstab: the start waits, and the service outlives it."""
    config, late = ETC / "config.yaml", Path("/run/late")
    before = config.read_text()
    shutil.copytree(CHECKOUT / "edge_daemon/demo/model", late / "shapes", copy_function=shutil.copyfile)
    run("chmod", "-R", "a+rX", str(late))
    slow = UNITS / "late-disk.service"
    slow.write_text("[Service]\nType=oneshot\nExecStart=/bin/sleep 3\n")
    disk = UNITS / "mnt-late.mount"
    needs = f"[Unit]\nRequires={slow.name}\nAfter={slow.name}\n"
    disk.write_text(f"{needs}[Mount]\nWhat={late}\nWhere=/mnt/late\nType=none\nOptions=bind\nLazyUnmount=yes\n")
    config.write_text(before.replace('"demo-shapes"', "/mnt/late/shapes"))
    run("edge-daemon", "systemd", "render", "--strict", "--write")
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", UNIT)
    run("systemctl", "start", "--no-block", disk.name)  # as the start of the board does
    run("systemctl", "start", UNIT)
    assert show("ActiveState") == "active"
    run("systemctl", "stop", disk.name)
    assert show("ActiveState") == "active"
    config.write_text(before)
    run("edge-daemon", "systemd", "render", "--strict", "--write")
    for path in (disk, slow):
        path.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)


# ---- another release --------------------------------------------------------------------------------------


def one_that_cannot_caption_is_not_taken(machine: Machine) -> None:
    """Found out beside the service, which does not notice."""
    before = (current(), show("InvocationID"), sorted(os.listdir(OPT)))
    broken = doctored(
        "8.0.0", caption_files="\ndef open_model(*_: object) -> None:\n    raise RuntimeError('doctored')\n"
    )
    said = deploy("upgrade.sh", "--wheelhouse", wheels_with(broken), expected=69)
    assert "cannot caption a picture" in said, said
    assert "RuntimeError: doctored" in said, said
    assert (current(), show("InvocationID"), sorted(os.listdir(OPT))) == before
    machine.caption_of_next_picture()


def one_that_dies_is_rolled_back(machine: Machine) -> None:
    """It passes all trials and dies as a service: the old one is back after its own start."""
    restart_s = away_s(machine.heard, lambda: run("systemctl", "restart", UNIT))
    before = current()
    broken = doctored("8.0.1", daemon="\nasync def run(*_: object) -> None:\n    raise RuntimeError('doctored')\n")
    rolled_back_s = away_s(
        machine.heard, lambda: deploy("upgrade.sh", "--wheelhouse", wheels_with(broken), expected=69)
    )
    print(f"  away for {restart_s:.1f} s at a restart, {rolled_back_s:.1f} s at the roll-back", flush=True)
    assert current() == before
    assert show("ActiveState") == "active"
    machine.caption_of_next_picture()


def a_good_one_takes_over(machine: Machine) -> None:
    """And the one before it is a link and a restart away; older ones are gone."""
    before = current()
    deploy("upgrade.sh", "--wheelhouse", wheels_with(doctored("9.0.0")))
    assert current().startswith("9.0.0-"), current()
    assert sorted(path.name for path in OPT.iterdir()) == sorted([before, current(), "current", "previous"])
    machine.caption_of_next_picture()
    deploy("upgrade.sh", "--back")
    assert current() == before
    machine.caption_of_next_picture()


def one_of_another_python_is_made_anew(machine: Machine) -> None:
    """As after Debian 12 has become 13: its packages lie where the new Python does not look."""
    wheelhouse_of_current = wheels_with(*DOCTORED.glob("edge_daemon-0.*.whl"))
    before = current()
    as_of_another_python()
    said = deploy("upgrade.sh", "--wheelhouse", wheelhouse_of_current)
    assert f"{before} is not whole" in said, said
    assert current() == before
    machine.caption_of_next_picture()
    as_of_another_python()
    run("systemctl", "restart", "--no-block", UNIT)
    wait_for("the service cannot start", lambda: show("SubState") == "auto-restart")
    deploy("install.sh", "--yes", "--no-packages", "--wheelhouse", wheelhouse_of_current)
    assert (current(), show("ActiveState")) == (before, "active")


def as_of_another_python() -> None:
    """The current release, as if its packages had been installed for Python 3.9."""
    (packages,) = (OPT / "current/lib").glob("python3.*")
    packages.rename(packages.with_name("python3.9"))


def away_s(heard: Subscriber, act: Callable[[], object]) -> float:
    """How long a subscriber was without the service: from its goodbye to the next `online`."""
    since = len(heard.on("availability"))
    words: list[tuple[float, bytes]] = []

    def watch() -> None:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s and b"online" not in [word for _, word in words]:
            news = heard.on("availability")[since + len(words) :]
            words.extend((time.monotonic(), message.payload) for message in news)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    act()
    watcher.join()
    assert {b"offline", b"online"} <= {word for _, word in words}, words
    gone_at_s, back_at_s = (next(at_s for at_s, word in words if word == wish) for wish in (b"offline", b"online"))
    return back_at_s - gone_at_s


# ---- gone -------------------------------------------------------------------------------------------------


def uninstalled(_: Machine) -> None:
    """Data and configuration stay, nothing else."""
    deploy("uninstall.sh")
    kept = [place for place in leftovers() if not place.startswith("edge-daemon:")]
    assert sorted(kept) == ["/etc/edge-daemon", "/var/lib/edge-daemon", "/var/lib/private/edge-daemon"], kept
    assert {path.name for path in ETC.iterdir()} == {"config.yaml", "credentials", "full.yaml.example"}
    assert (STATE / "outbox.db").exists()
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in running if str(OPT) in " ".join(words)]


def purged(_: Machine) -> None:
    """With the state of an instance; what only has a name like ours is its owner's."""
    purged_by(lambda: deploy("uninstall.sh", "--purge"))
    assert INBOX.is_dir(), "pictures are their owner's"


def purged_by(purge: Callable[[], object]) -> None:
    """Purge beside an instance that has run, and a directory that is none of ours."""
    (ETC / "porch.yaml").write_text((ETC / "config.yaml").read_text())
    Path("/var/lib/private/edge-daemon-porch/models").mkdir(parents=True)
    Path("/var/lib/edge-daemon-porch").symlink_to("private/edge-daemon-porch")
    mine = [Path(f"/var/lib/edge-daemon-{name}") for name in ("config", "models-of-mine")]
    for path in mine:
        path.mkdir()
    purge()
    assert sorted(leftovers()) == [str(path) for path in mine], leftovers()
    for path in mine:
        path.rmdir()


PROOFS = (
    dry_run,
    another_torch_is_refused,
    not_strict_is_not_started,
    installed,
    again_changes_nothing,
    reloaded,
    confined,
    two_instances,
    model_on_a_late_disk,
    one_that_cannot_caption_is_not_taken,
    one_that_dies_is_rolled_back,
    a_good_one_takes_over,
    one_of_another_python_is_made_anew,
    uninstalled,
    purged,
)


def fresh(made: Path) -> None:
    """A machine on which nobody has installed anything of ours; a broker; what a checkout in a home needs."""
    for place in (OPT, ETC, STATE, Path("/var/lib/private/edge-daemon"), INBOX):
        shutil.rmtree(place, ignore_errors=True)
    Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=4g,mode=0755", "tmpfs", "/opt")  # the overlay has a gigabyte
    run("hostname", NODE)
    WHEELS.mkdir()
    DOCTORED.mkdir()
    for wheel in made.glob("*.whl"):
        shutil.copy(wheel, DOCTORED if wheel.name.startswith("edge_daemon-") else WHEELS)
    wheels_with(*DOCTORED.glob("*.whl"))
    site = Path(wheelhouse.site_packages())
    if any(site.is_relative_to(place) for place in HIDDEN):
        for unit in (UNIT, "edge-daemon@.service"):
            drop_ins = Path("/run/systemd/system") / f"{unit}.d"
            drop_ins.mkdir(parents=True)
            (drop_ins / "90-checkout.conf").write_text(f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={site}\n")
        run("systemctl", "daemon-reload")
    run("systemctl", "start", "mosquitto.service")
