"""What systemd says of the unit as it is, and as `edge-daemon systemd render` leaves it: a figure from 0 to 10."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edge_daemon import config, drop_in
from tests.systemd.test_unit import MOST_EXPOSED, UNIT, analyze, verify

CAMERAS = {
    "porch": {"type": "rtsp", "url": "rtsp://192.168.1.20/1"},
    "usb": {"type": "v4l2"},
    "csi": {"type": "picamera"},
    "inbox": {"type": "folder", "path": "/home/pi/pictures"},
}
STRICT = drop_in.Found(
    credentials=("mqtt-password",),
    groups={Path("/home/pi/pictures"): "pi"},
    reaches=[drop_in.Reach("mqtt.host", ("192.168.1.5",))],
)


def rendered(sources: dict[str, dict[str, str]], found: drop_in.Found) -> str:
    settings = config.Config.model_validate({"sources": sources, "state_dir": "/mnt/ssd"})
    return drop_in.text_of(settings, found, "the test")


FOLDER = {"inbox": {"type": "folder", "path": "/srv/pictures"}}
UNITS = {
    "as it is": "",
    "strict, a folder": rendered(FOLDER, STRICT),
    "open, all kinds of cameras": rendered(CAMERAS, drop_in.Found()),
    "strict, all kinds of cameras": rendered(CAMERAS, STRICT),
}


@pytest.mark.parametrize("added", UNITS.values(), ids=UNITS)
def test_it_exposes_little(tmp_path: Path, added: str) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text() + added)
    said = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(unit))
    print(said.stdout.splitlines()[-1])
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("added", UNITS.values(), ids=UNITS)
def test_systemd_has_nothing_to_say_about_what_is_rendered(tmp_path: Path, added: str) -> None:
    assert verify(UNIT.read_text() + added, tmp_path) == ""
    if added:
        assert "DeviceAlow" in verify(UNIT.read_text() + added + "DeviceAlow=/dev/null\n", tmp_path)


def template() -> str:
    """As the installer makes it."""
    code = f". deploy/release.sh; template_of {UNIT}"
    return subprocess.run(["bash", "-c", code], cwd=UNIT.parents[1], capture_output=True, text=True, check=True).stdout


def test_the_unit_for_several_is_the_unit_with_a_configuration_and_a_state_of_its_own() -> None:
    ours, several = UNIT.read_text().splitlines(), template().splitlines()
    gone, added = [line for line in ours if line not in several], [line for line in several if line not in ours]
    assert [line.split("=")[0] for line in gone] == ["Description", "ExecStart", "StateDirectory"]
    assert added == [
        f"{gone[0]}, instance %i",
        gone[1].replace("config.yaml", "%i.yaml"),
        "StateDirectory=edge-daemon-%i edge-daemon",
        "Environment=EDGE_DAEMON_STATE_DIR=%S/edge-daemon-%i",
    ]
