"""What the doctor examines: a configuration, a state directory, and the places of a system where the rest is read."""

from __future__ import annotations

import getpass
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_daemon import readings

if TYPE_CHECKING:
    from edge_daemon.config import Config
    from edge_daemon.models.catalogue import Artefact

CaptionWish = Literal["auto", "yes", "no"]
"""Whether a caption is timed; auto: where the service does not run and the memory allows."""
ALONE_S = 3.0
"""How long the doctor stays at the broker under our name: whoever has it as well is back after a second or two."""
NOBODY = 65534
LOCKS_AT, LOCKED_BYTES = 0x40000000, 512
"""Where SQLite locks (os_unix.c: PENDING_BYTE, then RESERVED and SHARED)."""


@dataclass(frozen=True)
class Places:
    """Where the system is; tests have others."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    etc: Path = Path("/etc")
    run: Path = Path("/run")
    packages: tuple[str, ...] = ()
    """Directories of Python packages; empty: those of this interpreter."""

    @property
    def memory(self) -> readings.Files:
        """Where memory is read."""
        return readings.Files(self.proc, self.sys / "fs/cgroup")


@dataclass(frozen=True)
class Account:
    """A user, and what groups it is in."""

    name: str
    uid: int
    gids: frozenset[int]

    def may(self, status: os.stat_result, rights: int) -> bool:
        """Whether it may do this (os.R_OK, W_OK, X_OK) with what has this owner, group and mode."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.gids else 0
        return (status.st_mode >> shift) & rights == rights


@dataclass(frozen=True)
class Unit:
    """What systemd says of the service."""

    values: dict[str, str] = field(default_factory=dict)
    """Properties of `systemctl show`; empty where no systemd runs."""
    name: str = "edge-daemon"
    """As systemctl takes it."""

    @property
    def config_option(self) -> str:
        """What names its configuration to our commands: empty for the default."""
        _, at, instance = self.name.partition("@")
        return f" -c /etc/edge-daemon/{instance}.yaml" if at else ""

    @property
    def state_dir(self) -> Path | None:
        """Where the unit itself puts the state, as that of an instance does; None where it leaves it to the default."""
        found = re.search(r'(?:^| )("?)EDGE_DAEMON_STATE_DIR=(.+?)\1(?: |$)', self.values.get("Environment", ""))
        return Path(found[2]) if found else None

    @property
    def is_installed(self) -> bool:
        """Whether there is a unit."""
        return self.values.get("LoadState") == "loaded"

    @property
    def gives_directories(self) -> bool:
        """Whether the state directory is made by systemd for a user that exists only while the service runs."""
        return self.values.get("DynamicUser") == "yes"

    def shows(self, path: Path) -> bool:
        """Whether a path is bound into what it sees, by `systemd render` or by hand."""
        bound = self.values.get("BindReadOnlyPaths", "")  # SOURCE:DESTINATION:rbind …, unquoted
        return any(f":{place}:" in bound for place in (path, *path.parents))

    @property
    def pid(self) -> int | None:
        """Of the daemon, while it runs."""
        return int(self.values.get("MainPID") or 0) or None


@dataclass(frozen=True)
class Subject:
    """All of it."""

    config_path: Path
    config: Config | None
    """None when it cannot be used, or there is none."""
    state_dir: Path
    account: Account
    """Who runs the service."""
    unit: Unit = Unit()
    places: Places = Places()
    caption: CaptionWish = "auto"
    catalogue: tuple[Artefact, ...] = ()
    service_pid: int | None = None
    """Of the daemon that works with this state directory now."""
    alone_s: float = ALONE_S


def account_of(unit: Unit) -> Account:
    """Who runs the service: the user of its unit, else whoever runs the doctor.

    A dynamic user that does not exist now is nobody special: it may what everybody may.
    """
    if os.name != "posix":
        return Account(getpass.getuser(), 0, frozenset())
    import grp
    import pwd

    name = unit.values.get("User", "")
    if not unit.is_installed:
        return Account(user_name(os.geteuid()), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))
    extra = frozenset(
        group.gr_gid for group in grp.getgrall() if group.gr_name in unit.values.get("SupplementaryGroups", "").split()
    )
    try:
        known = pwd.getpwnam(name or "root")
    except KeyError:
        return Account(name, NOBODY, frozenset({NOBODY}) | extra)
    return Account(known.pw_name, known.pw_uid, frozenset(os.getgrouplist(known.pw_name, known.pw_gid)) | extra)


def user_name(uid: int) -> str:
    """A user's name, or its number."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def is_root() -> bool:
    """Whether we may give files to others."""
    return os.name == "posix" and os.geteuid() == 0


def lock_holder(database: Path) -> int | None:
    """Which process has an SQLite file open and locked; 0 when that cannot be told, None for nobody.

    Asks the kernel and changes nothing.
    """
    if not sys.platform.startswith("linux"):
        return None
    import fcntl
    import struct

    layout = "hhqqi4x"  # struct flock on 64-bit Linux
    try:
        with database.open("rb") as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, LOCKS_AT, LOCKED_BYTES, 0)
            kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return None if kind == fcntl.F_UNLCK else max(0, pid)
