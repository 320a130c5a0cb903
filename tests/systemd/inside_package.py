"""Proves the Debian package on a fresh machine, after the scripts of inside_install.py: run by test_install.py.

run-in-systemd.sh -- python -m tests.systemd.inside_package WHEELHOUSE
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.integration.service import subscribed
from tests.systemd import inside_install
from tests.systemd.inside_install import (
    ETC,
    STATE,
    as_of_another_python,
    current,
    deploy,
    doctored,
    fresh,
    leftovers,
    purged_by,
    said_by,
    wheels_with,
)
from tests.systemd.inside_service import BROKER_PORT, UNIT, Machine, go_through, run, show


def package(version: str, **appended: str) -> str:
    """One with all wheels inside, of a doctored version."""
    deploy("build-deb", "--wheelhouse", wheels_with(doctored(version, **appended)), "--out", "/run/packages")
    (found,) = Path("/run/packages").glob(f"edge-daemon_{version}_*.deb")
    return str(found)


def dpkg(*arguments: str, expected: int = 0, **settings: str) -> str:
    return said_by("dpkg", *arguments, expected=expected, DEBIAN_FRONTEND="noninteractive", **settings)


def package_in_an_image(machine: Machine) -> None:
    """As in the chroot in which an image for a board is made: no systemd runs while it is installed."""
    hiding = 'mount -t tmpfs tmpfs /run/systemd && exec dpkg --install "$1"'
    said_by("unshare", "--mount", "sh", "-c", hiding, "sh", package("1.0.0"), DEBIAN_FRONTEND="noninteractive")
    run("systemctl", "daemon-reload")  # the board starts
    assert (show("ActiveState"), run("systemctl", "is-enabled", UNIT).strip()) == ("inactive", "enabled")
    run("systemctl", "start", UNIT)
    machine.caption_of_next_picture()
    dpkg("--purge", "edge-daemon")
    assert not leftovers(), leftovers()


def package_installed(machine: Machine) -> None:
    dpkg("--install", package("1.0.0"))
    assert show("ActiveState") == "active"
    assert run("systemctl", "is-enabled", UNIT).strip() == "enabled"
    machine.caption_of_next_picture()


def package_upgraded(machine: Machine) -> None:
    """A configuration that was changed stays; a release that never is ready does not."""
    conffile = ETC / "config.yaml"
    conffile.write_text(conffile.read_text() + "log_level: debug\n")
    dpkg("--install", package("1.0.1"))
    assert current().startswith("1.0.1-")
    assert "log_level: debug" in conffile.read_text()
    machine.caption_of_next_picture()
    never = package("1.0.2", daemon="\nasync def run(*_: object) -> None:\n    await asyncio.sleep(1e6)\n")
    said = dpkg("--install", never, expected=1, READY_WITHIN_S="4")
    assert "is not well here; what ran before runs again" in said, said
    assert current().startswith("1.0.1-")
    machine.caption_of_next_picture()


def package_for_another_python(machine: Machine) -> None:
    """As after Debian 12 has become 13."""
    (good,) = Path("/run/packages").glob("edge-daemon_1.0.1_*.deb")
    dpkg("--install", str(good))
    before, started = current(), show("InvocationID")
    as_of_another_python()
    said_by("dpkg-reconfigure", "edge-daemon", DEBIAN_FRONTEND="noninteractive")
    assert (current(), show("ActiveState")) == (before, "active")
    assert show("InvocationID") != started, "it runs what is not there any more"
    machine.caption_of_next_picture()


def package_removed(_: Machine) -> None:
    dpkg("--remove", "edge-daemon")
    kept = [place for place in leftovers() if not place.startswith("edge-daemon:")]
    assert (ETC / "config.yaml").exists()
    assert (STATE / "outbox.db").exists()
    expected = {"/etc/edge-daemon", "/var/lib/edge-daemon", "/var/lib/private/edge-daemon"}
    enabled = ("deb-systemd-helper", "multi-user.target.wants")  # Debian keeps this until the purge
    assert {place for place in kept if not any(word in place for word in enabled)} == expected, kept


def package_purged(_: Machine) -> None:
    purged_by(lambda: dpkg("--purge", "edge-daemon"))


PROOFS = (
    *inside_install.PROOFS,
    package_in_an_image,
    *(package_installed, package_upgraded, package_for_another_python, package_removed, package_purged),
)


def main(made: str) -> int:
    """Go through all proofs; the number of those that failed."""
    if not Path("/run/ris").is_dir():
        sys.exit("only inside run-in-systemd.sh: this installs and removes")
    fresh(Path(made))
    with subscribed(BROKER_PORT) as heard:
        return go_through(PROOFS, Machine(heard, Path("/run/pictures")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
