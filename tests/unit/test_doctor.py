"""The doctor's core, and what it says of a machine: each finding with what causes it, in files like the kernel's."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from edge_daemon import cli, exit_codes, subcommand
from edge_daemon.clock import Clock
from edge_daemon.config import Config
from edge_daemon.doctor import board, capacity, command, disk, packages, processor, screen, unit, warmth
from edge_daemon.doctor.checkup import Check, examine
from edge_daemon.doctor.finding import Finding, exit_code, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Account, Places, Subject, Unit, account_of
from edge_daemon.thermal import Reading
from edge_daemon.units import MIB
from tests.boards import Board

PI_4 = (
    "processor : 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nprocessor : 1\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
)
PI_5 = "processor : 0\nFeatures\t: fp asimd aes atomics fphp asimdhp asimddp\n"
SERVER = "flags\t\t: fpu avx512_vnni avx512_bf16 avx512_fp16\n"


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    places = Places(tmp_path / "proc", tmp_path / "sys", tmp_path / "etc", tmp_path / "run")
    for place in (places.proc, places.sys, places.etc, places.run):
        place.mkdir()
    return Subject(
        tmp_path / "config.yaml", None, tmp_path / "state", Account("service", 12345, frozenset()), places=places
    )


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.id: finding.state for finding in findings}


# ---- the core -------------------------------------------------------------------------------------------


def test_the_exit_code_is_that_of_the_worst() -> None:
    fine, poor = ok("a", ""), warning("b", "", "")
    assert exit_code([fine, poor, skipped("c", "")]) == 0
    assert exit_code([fine, problem("d", "", "")]) == 69
    assert exit_code([problem("d", "", ""), problem("config", "", "")]) == 78


def test_a_check_that_hangs_is_told_of_and_what_it_had_found_is_kept(subject: Subject) -> None:
    released = threading.Event()

    def look(_: Subject) -> Iterator[Finding]:
        yield ok("slow.first", "found in time")
        released.wait(60)

    found = list(examine(Check("slow", "something slow", 0.2, look), subject))
    released.set()
    assert states(found) == {"slow.first": "ok", "slow": "problem"}
    assert "something slow: no answer within 0 s" in found[1].what


def test_a_check_that_fails_in_itself_is_told_of(subject: Subject) -> None:
    def look(_: Subject) -> NoReturn:
        raise KeyError("oops")

    (found,) = examine(Check("odd", "something odd", 60.0, look), subject)
    assert found.state == "warning"
    assert "because of an internal error (KeyError: 'oops')" in found.what


def test_a_configuration_that_nobody_named_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subcommand, "DEFAULT_CONFIG", tmp_path / "config.yaml")
    assert command.configuration(tmp_path / "config.yaml")[0].state == "warning"
    assert command.configuration(tmp_path / "other.yaml")[0].state == "problem"


def test_a_configuration_that_cannot_be_read_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening a pipe that nobody writes to waits for ever, as a network mount without its server does."""
    os.mkfifo(tmp_path / "config.yaml")
    monkeypatch.setattr(command, "READ_S", 0.2)
    assert cli.main(["doctor", "-c", str(tmp_path / "config.yaml")]) == exit_codes.UNAVAILABLE
    assert "config.yaml could not be read within 0.2 s" in capsys.readouterr().err
    writer = os.open(tmp_path / "config.yaml", os.O_WRONLY)  # let the thread go
    os.close(writer)


def test_lines_stay_lines() -> None:
    assert screen.in_words(ok("journal", "last:\na b\n\nc"), 40).splitlines() == [
        "✓ journal         last:",
        "                  a b",
        "",
        "                  c",
    ]


def test_what_only_root_may_see_is_skipped(subject: Subject) -> None:
    def look(_: Subject) -> NoReturn:
        raise PermissionError(13, "Permission denied", "/var/lib/private")

    (found,) = examine(Check("state", "", 60.0, look), subject)
    assert found == skipped("state", "/var/lib/private: Permission denied; run the doctor with sudo")


def test_on_the_screen() -> None:
    bad = problem("disk", "is full " * 20, "Nothing can be kept.", "rm x")
    lines = screen.in_words(bad, 60).splitlines()
    assert lines[0].startswith("✗ disk            is full is full")
    assert all(len(line) <= 60 for line in lines)
    assert lines[-2:] == ["    Nothing can be kept.", "    → rm x"]
    assert screen.in_words(ok("disk", "fine")) == "✓ disk            fine"
    plain = screen.in_words(bad, 60, screen.marks_for("ascii"))
    assert plain.isascii()
    assert screen.summary([bad, ok("a", ""), skipped("b", "")]) == "1 problem, 0 warnings, 1 ok, 1 not checked"


# ---- board, system, Python, clock -----------------------------------------------------------------------


def test_systems(tmp_path: Path) -> None:
    put(tmp_path / "os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n')
    assert board.system(tmp_path) == ok("system", "Debian GNU/Linux 13 (trixie)")
    put(tmp_path / "os-release", 'PRETTY_NAME="Ubuntu 24.04"\nID=ubuntu\nVERSION_ID="24.04"\nBROKEN="\n')
    found = board.system(tmp_path)
    assert (found.state, found.what) == ("warning", "Ubuntu 24.04: not one of the systems that this was tested on")
    assert board.system(tmp_path / "none").state == "warning"


@pytest.mark.parametrize(
    ("machine", "largest", "state"),
    [("aarch64", 2**63 - 1, "ok"), ("aarch64", 2**31 - 1, "problem"), ("armv7l", 2**31 - 1, "problem")],
)
def test_32_bits_are_too_few(machine: str, largest: int, state: str) -> None:
    assert board.bits(machine, largest).state == state


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 11), "ok"), ((3, 13), "ok"), ((3, 12), "warning"), ((3, 10), "problem"), ((3, 14), "problem")],
)
def test_pythons(version: tuple[int, int], state: str) -> None:
    assert board.python(version).state == state


@pytest.mark.parametrize(("kernel", "state"), [(True, "ok"), (False, "warning"), (None, "skipped")])
def test_the_clock(tmp_path: Path, kernel: bool | None, state: str) -> None:
    assert board.clock(Clock(lambda: kernel, tmp_path / "none" / "flag")).state == state


# ---- libraries ------------------------------------------------------------------------------------------


def install(place: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    put(place / f"{name}-{version}.dist-info" / "METADATA", "\n".join(["Metadata-Version: 2.1", *lines, ""]))


def test_libraries_against_our_pins(tmp_path: Path, subject: Subject) -> None:
    requires = ("Paho.MQTT==2.2.0", "numpy==2.4.6", "PyYAML==6.0.3", 'onnx==1.23.2; extra == "models"')
    install(tmp_path, "edge_daemon", "0.1.0", (*requires, 'torch==9.9 ; platform_machine == "nowhere"'))
    install(tmp_path, "paho_mqtt", "2.2.0")
    install(tmp_path, "numpy", "1.26.4")
    found = list(packages.look(replace(subject, places=replace(subject.places, packages=(str(tmp_path),)))))
    assert states(found) == {"packages.numpy": "warning", "packages.pyyaml": "problem", "packages": "ok"}
    assert found[0].what == "numpy 1.26.4; the tested version is 2.4.6"
    assert found[1].command == f"{sys.executable} -m pip install pyyaml==6.0.3"
    assert found[2].what == "1 of 3 libraries are exactly the tested versions"
    install(tmp_path, "onnx", "1.0")
    found = list(packages.look(replace(subject, places=replace(subject.places, packages=(str(tmp_path),)))))
    assert states(found)["packages.onnx"] == "warning"


def test_every_pin_of_ours_is_understood() -> None:
    from importlib import metadata

    requires = metadata.requires("edge-daemon") or []
    assert [text for text in requires if "==" not in text] == []
    on_arm, _ = packages.pins(requires, "aarch64")
    here, extras = packages.pins(requires, "x86_64")
    assert (on_arm["torch"], here["torch"]) == ("2.9.1", "2.13.0")
    assert extras["onnxruntime"]
    assert on_arm.keys() - here.keys() == {"onnx", "onnxruntime"}, "for int8"
    assert here.keys() <= on_arm.keys()


@pytest.mark.parametrize(
    ("version", "machine", "cuda", "state"),
    [
        ("2.9.1", "aarch64", "", "ok"),
        ("2.10.0", "aarch64", "", "problem"),
        ("2.13.0", "aarch64", "13.0", "problem"),
        ("2.9.1", "aarch64", "12.8", "problem"),
        ("2.13.0+cpu", "x86_64", "", "ok"),
        ("2.13.0", "x86_64", "13.0", "warning"),
        ("2.13.0", "x86_64", None, "skipped"),
    ],
)
def test_builds_of_torch(version: str, machine: str, cuda: str | None, state: str) -> None:
    found = packages.torch_build(version, machine, cuda)
    assert found.state == state
    assert state != "problem" or "torch==2.9.1" in found.command


def test_what_a_torch_says_of_its_cuda(tmp_path: Path) -> None:
    for text, cuda in (("cuda: Optional[str] = '13.0'\n", "13.0"), ("cuda: Optional[str] = None\n", ""), ("", None)):
        put(tmp_path / "version.py", f"__version__ = '2.13.0'\n{text}hip = None\n")
        assert packages.cuda_of(tmp_path / "version.py") == cuda
    assert packages.cuda_of(tmp_path / "none.py") is None


# ---- the processor --------------------------------------------------------------------------------------


def test_features() -> None:
    assert processor.features(PI_4, "aarch64") == processor.Features(False, False, False, old_arm=True)
    assert processor.features(PI_5, "aarch64") == processor.Features(True, True, False, old_arm=False)
    assert processor.features(SERVER, "x86_64") == processor.Features(True, True, True, old_arm=False)
    assert processor.features("", "aarch64") == processor.Features(False, False, False, old_arm=False)
    assert "torch up to 2.9 only" in processor.in_words(processor.features(PI_4, "aarch64"))


def test_a_precision_that_is_emulated() -> None:
    there = processor.features(PI_5, "aarch64")
    assert processor.precision("bfloat16", "auto", there).state == "warning"
    assert processor.precision("bfloat16", "cuda", there).state == "ok"
    assert processor.precision("float16", "cpu", there).state == "ok"
    assert processor.precision("auto", "auto", there).state == "ok"


def test_a_torch_that_kills_its_process(tmp_path: Path) -> None:
    """Really a process that dies of SIGILL, as on a Raspberry Pi 4 with torch 2.10."""
    put(tmp_path / "device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    dies = f"import os; os.kill(os.getpid(), {signal.SIGILL.value})"
    found = processor.probed(tmp_path, [sys.executable, "-c", dies])
    assert found.state == "problem"
    assert "was ended by SIGILL" in found.what
    assert "Raspberry Pi 4 Model B Rev 1.4) lacks an instruction" in found.meaning
    assert "pip install torch==" in found.command
    dies = f"import os; os.kill(os.getpid(), {signal.SIGSEGV.value})"
    assert "A fault in a library" in processor.probed(tmp_path, [sys.executable, "-c", dies]).meaning


def test_a_torch_that_fails_hangs_or_works(tmp_path: Path) -> None:
    found = processor.probed(tmp_path, [sys.executable, "-c", "raise ImportError('libcudart.so.13: no such file')"])
    assert (found.state, found.what) == ("problem", "torch cannot be used: ImportError: libcudart.so.13: no such file")
    found = processor.probed(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"], deadline_s=0.3)
    assert found.state == "problem"
    assert "within 0 s" in found.what
    assert processor.probed(tmp_path, [sys.executable, "-c", "print('2.9.1')"]).what.startswith("torch 2.9.1 computes")


# ---- memory ---------------------------------------------------------------------------------------------


def test_memory_of_the_board() -> None:
    assert capacity.memory(4096 * MIB, 3000 * MIB) == ok("memory", "4096 MiB, 3000 of them available")
    assert capacity.memory(512 * MIB, 300 * MIB).state == "problem"
    assert capacity.memory(None, None).state == "skipped"


def test_swap(tmp_path: Path) -> None:
    head = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    put(tmp_path / "block/zram0/disksize", f"{512 * MIB}\n")
    found = capacity.swap(f"{head}/dev/zram0  partition 524284 0 100\n", tmp_path, MOUNTS)
    assert (found.state, found.what.partition(";")[0]) == ("ok", "zram of 512 MiB")
    found = capacity.swap(f"{head}/dev/mmcblk0p3  partition 524284 0 -2\n", tmp_path, MOUNTS)
    assert (found.state, found.what) == ("warning", "swap on the SD card: /dev/mmcblk0p3")
    assert found.command.startswith("sudo swapoff /dev/mmcblk0p3;")


def test_swap_in_a_file_on_the_card(subject: Subject) -> None:
    put(subject.places.proc / "self/mountinfo", MOUNTS)
    put(subject.places.proc / "swaps", "Filename Type Size Used Priority\n/var/swap file 524272 0 -2\n")
    found = next(f for f in capacity.look(subject) if f.id == "swap")
    assert (found.state, found.what) == ("warning", "swap on the SD card: /var/swap")
    assert found.command.startswith("sudo systemctl disable --now dphys-swapfile;"), "it would be back after a restart"
    elsewhere = "Filename Type Size Used Priority\n/mnt/usb\\040disk/swap file 524272 0 -2\n"
    assert capacity.swap(elsewhere, subject.places.sys, MOUNTS).state == "ok"
    assert capacity.swap(elsewhere, subject.places.sys, "").state == "ok", "the kernel does not tell where it lies"


def test_cgroups(tmp_path: Path) -> None:
    put(tmp_path / "cgroup.controllers", "cpu io pids\n")
    found = capacity.controller("0::/system.slice/edge-daemon.service", tmp_path)
    assert found.state == "warning"
    assert "cgroup_enable=memory" in found.command
    put(tmp_path / "cgroup.controllers", "cpu memory pids\n")
    assert capacity.controller("0::/edge", tmp_path).state == "ok"
    assert "no memory limit" in capacity.limit("0::/edge", tmp_path, 8192 * MIB).what
    put(tmp_path / "edge/memory.max", f"{1500 * MIB}\n")
    put(tmp_path / "edge/memory.current", f"{500 * MIB}\n")
    assert "1500 MiB holds, 1000 of it" in capacity.limit("0::/edge", tmp_path, 8192 * MIB).what
    put(tmp_path / "edge/memory.high", f"{1200 * MIB}\n")
    assert "1200 MiB holds, 700 of it" in capacity.limit("0::/edge", tmp_path, 8192 * MIB).what


def test_memory_is_read_where_it_is(subject: Subject) -> None:
    put(subject.places.proc / "meminfo", "MemTotal: 8000000 kB\nMemAvailable: 500000 kB\n")
    put(subject.places.proc / "77/cgroup", "0::/limited\n")
    put(subject.places.sys / "fs/cgroup/cgroup.controllers", "memory\n")
    put(subject.places.sys / "fs/cgroup/limited/memory.max", f"{700 * MIB}\n")
    found = {f.id: f.what for f in capacity.look(replace(subject, unit=Unit({"MainPID": "77"})))}
    assert found["memory"].startswith("7812 MiB")
    assert "700 MiB" in found["limit"], "the service's own cgroup"


# ---- temperature and power ------------------------------------------------------------------------------


@pytest.mark.parametrize(("celsius", "state"), [(45.0, "ok"), (72.0, "warning"), (81.0, "problem"), (None, "skipped")])
def test_temperature(celsius: float | None, state: str) -> None:
    assert warmth.temperature(Reading(celsius), 70.0, 80.0).state == state


def test_power() -> None:
    assert warmth.power(Reading(), None, "").state == "skipped"
    assert warmth.power(Reading(throttled=0), 0, "").state == "ok"
    assert warmth.power(Reading(under_voltage=True), None, "").state == "problem"
    now = warmth.power(Reading(throttled=0x4), None, "")
    assert (now.state, now.what) == ("warning", "now: a slowed-down processor")
    before = warmth.power(Reading(throttled=0), 0x50000, "")
    assert (before.state, before.what) == (
        "warning",
        "since it was switched on: too little voltage, a slowed-down processor",
    )
    log = (
        "hwmon hwmon1: Undervoltage detected!\nhwmon hwmon1: Voltage normalised\nUnder-voltage detected! (0x00050005)\n"
    )
    assert "too little voltage (2 times in the kernel's log)" in warmth.power(Reading(), 0, log).what


def test_power_is_read_from_the_board_and_from_its_command(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys_dir = Board(subject.places.sys)
    sys_dir.temperature(83)
    sys_dir.alarm(under_voltage=False)
    put(tmp_path / "bin/vcgencmd", "#!/bin/sh\necho throttled=0x20000\n")
    (tmp_path / "bin/vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found = list(warmth.look(subject))
    assert states(found) == {"temperature": "problem", "power": "warning"}
    assert found[1].what == "since it was switched on: a capped processor clock"


# ---- the disk -------------------------------------------------------------------------------------------

MOUNTS = """\
21 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw,commit=30
22 21 0:21 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=800000k
23 21 8:1 / /mnt/usb\\040disk rw,relatime shared:3 - ext4 /dev/sda1 ro
24 21 179:3 / /srv rw,relatime - ext4 /dev/mmcblk0p3 rw
no mount at all
"""


def mount(place: str) -> disk.Mount:
    found = disk.mount_of(Path(place), MOUNTS)
    assert found is not None
    return found


def test_room_on_the_disk() -> None:
    assert disk.room(Path("/"), 5000 * MIB, 64).state == "ok"
    assert disk.room(Path("/"), 200 * MIB, 64).state == "warning"
    assert disk.room(Path("/"), 10 * MIB, 64).state == "problem"


def test_how_the_disk_is_mounted() -> None:
    assert disk.mounted(mount("/var/lib/edge-daemon")).what == "ext4 on /dev/mmcblk0p2, mounted at /"
    assert disk.mounted(mount("/run/edge-daemon")).state == "warning"
    read_only = disk.mounted(mount("/mnt/usb disk/state"))
    assert (read_only.state, read_only.what) == ("problem", "ext4 on /dev/sda1, mounted at /mnt/usb disk, read-only")
    assert disk.mount_of(Path("/x"), "") is None


def test_cards(tmp_path: Path) -> None:
    put(tmp_path / "block/mmcblk0/device/name", "SD64G\n")
    put(tmp_path / "block/mmcblk0/device/date", "03/2024\n")
    assert disk.card(mount("/var"), tmp_path) == ok("card", "SD SD64G of 03/2024; noatime, commit=30")
    worn = disk.card(mount("/srv/x"), tmp_path)
    assert (worn.state, "noatime,commit=60" in worn.command) == ("warning", True)
    assert "not an SD card" in disk.card(mount("/mnt/usb disk"), tmp_path).what


# ---- the unit -------------------------------------------------------------------------------------------

RUNNING = """\
Result=success
NRestarts=0
MainPID=812
StatusText=ready
ExecMainStatus=0
User=edge-daemon
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no
"""


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", "active (running), 0 restarts. ready"),
        ({"LoadState": "not-found"}, "warning", "there is no unit"),
        ({"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78"}, "problem", "failed (failed)"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "problem", "failed"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "ExecMainStatus": "69"}, "problem", "auto-restart"),
        ({"NeedDaemonReload": "yes"}, "warning", "active"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warning", "inactive (dead)"),
        ({"UnitFileState": "disabled"}, "warning", "disabled"),
        ({"NRestarts": "3"}, "warning", "3 restarts"),
    ],
)
def test_states_of_the_unit(changes: dict[str, str], state: str, words: str) -> None:
    found = unit.state(Unit(unit.parsed(RUNNING) | changes))
    assert found.state == state
    assert words in found.what


def test_a_unit_that_gave_up_on_its_configuration_says_so() -> None:
    ended = unit.parsed(RUNNING) | {"ActiveState": "failed", "SubState": "failed"}
    assert "the configuration is wrong" in unit.state(Unit(ended | {"ExecMainStatus": "78"})).meaning
    assert "the configuration is wrong" not in unit.state(Unit(ended | {"ExecMainStatus": "1"})).meaning


def test_without_a_unit_the_installer_is_named() -> None:
    """The unit alone has nothing to start: it would fail with 203/EXEC for ever."""
    assert unit.state(Unit({"LoadState": "not-found"})).command == "sudo deploy/install.sh"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("/etc/edge-daemon/config.yaml", "edge-daemon"),
        ("/etc/edge-daemon/porch.yaml", "edge-daemon@porch"),
        ("/home/pi/draft.yaml", "edge-daemon"),
    ],
)
def test_which_unit_runs_a_configuration(config: str, name: str) -> None:
    assert unit.name_of(Path(config)) == name


def test_an_instance_is_spoken_of_by_its_name() -> None:
    values = unit.parsed(RUNNING + 'Environment="A=x y" "EDGE_DAEMON_STATE_DIR=/var/lib/edge-daemon-my porch" B=c\n')
    porch = Unit(values | {"ActiveState": "failed", "ExecMainStatus": "78"}, "edge-daemon@porch")
    option = "-c /etc/edge-daemon/porch.yaml"
    assert unit.state(porch).command == f"edge-daemon check-config {option}; sudo systemctl restart edge-daemon@porch"
    assert unit.concealed("x", "y", "PrivateTmp", porch).command == f"sudo edge-daemon systemd render {option} --write"
    assert "of edge-daemon@porch" in unit.journal("oh\n", porch.name).what
    assert porch.state_dir == Path("/var/lib/edge-daemon-my porch")
    assert Unit({"Environment": "EDGE_DAEMON_STATE_DIR=/mnt/x A=b"}).state_dir == Path("/mnt/x")
    assert (Unit().state_dir, Unit().config_option) == (None, "")


def test_the_journal() -> None:
    assert unit.journal("-- No entries --\n", "edge-daemon").state == "ok"
    assert unit.journal("", "edge-daemon").state == "skipped", "who may not read it sees nothing"
    found = unit.journal("\n".join(f"line {number}" for number in range(9)), "edge-daemon")
    assert (found.state, found.what) == (
        "warning",
        "the last warnings of edge-daemon:\nline 4\nline 5\nline 6\nline 7\nline 8",
    )


def test_what_the_unit_hides_of_model_and_tls(subject: Subject) -> None:
    asked = {
        "model": {"name": "/home/me/model"},
        "mqtt": {"host": "pi", "tls": {"enabled": True, "ca_file": "/tmp/ca.crt"}},
        "sources": {"porch": {"type": "folder", "path": "/home/me/pictures"}},
    }
    values = {"LoadState": "loaded", "ActiveState": "active", "PrivateTmp": "yes", "ProtectHome": "tmpfs"}
    examined = replace(subject, config=Config.model_validate(asked), unit=Unit(values))
    found = {f.id: f.what for f in unit.look(examined) if f.state == "problem"}
    assert found == {
        "unit.model.name": "model.name, /home/me/model, is hidden from the service by ProtectHome= of its unit",
        "unit.mqtt.tls.ca_file": "mqtt.tls.ca_file, /tmp/ca.crt, is hidden from the service by PrivateTmp= of its unit",
    }
    seen = replace(examined, unit=Unit(values | {"ProtectHome": "read-only", "PrivateTmp": "no"}))
    assert [f for f in unit.look(seen) if f.state == "problem"] == []


def test_no_systemd(subject: Subject) -> None:
    assert unit.read(subject.places.run, "edge-daemon") == Unit()
    assert states(list(unit.look(subject))) == {"unit": "skipped"}


def test_who_runs_the_service() -> None:
    assert account_of(Unit()).uid == os.geteuid()
    dynamic = account_of(Unit({"LoadState": "loaded", "User": "no-such-user", "SupplementaryGroups": "root"}))
    assert (dynamic.name, dynamic.uid, 0 in dynamic.gids) == ("no-such-user", 65534, True)
    assert account_of(Unit({"LoadState": "loaded", "User": "daemon"})).name == "daemon"
