"""The drop-in that opens to the service what its configuration needs, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_daemon import cli, config, drop_in, exit_codes, unit_command
from edge_daemon.errors import ConfigError, UnavailableError
from tests.conftest import missing

FOLDER = {"type": "folder", "path": "/srv/pictures"}


def rendered(found: drop_in.Found | None = None, **values: object) -> list[str]:
    """The settings of a drop-in; its comments are for people."""
    settings = config.Config.model_validate(
        {"sources": {"inbox": FOLDER}, "state_dir": "/var/lib/edge-daemon", **values}
    )
    text = drop_in.text_of(settings, found or drop_in.Found(), "the test")
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_folder_outside_of_homes_needs_nothing() -> None:
    assert rendered() == ["[Service]"]


def test_of_a_home_only_what_is_named_is_seen() -> None:
    lines = rendered(
        sources={"inbox": {"type": "folder", "path": "/home/pi/my 100%: pictures"}}, model={"name": "/root/model"}
    )
    assert lines[lines.index("[Service]") + 1 :] == [
        "ProtectHome=tmpfs",
        'BindReadOnlyPaths=-"/home/pi/my 100%%\\: pictures"',
        "BindReadOnlyPaths=-/root/model",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"sources": {"film": {"type": "stream", "url": "/home/pi/it"}}},
        {"sources": {"film": {"type": "stream", "url": "file:///home/pi/i%74"}}},
        {"sources": {"csi": {"type": "picamera", "tuning_file": "/home/pi/it"}}},
        {"sources": {"thermal": {"type": "command", "command": ["/home/pi/it", "/home/pi/other"]}}},
        {"mqtt": {"tls": {"enabled": True, "ca_file": "/home/pi/it"}}},
    ],
)
def test_whatever_a_configuration_reads_in_a_home_is_seen(values: dict[str, object]) -> None:
    lines = rendered(None, **values)
    assert lines[lines.index("ProtectHome=tmpfs") + 1 :] == ["BindReadOnlyPaths=-/home/pi/it"]


@pytest.mark.parametrize(
    "source", [{"type": "stream", "url": "rtsp://camera/1"}, {"type": "command", "command": ["ffmpeg", "/dev/stdin"]}]
)
def test_a_source_that_is_no_camera_of_the_board_needs_nothing(source: dict[str, object]) -> None:
    assert rendered(sources={"porch": source}) == ["[Service]"]


def test_a_folder_in_tmp_leaves_homes_closed() -> None:
    lines = rendered(sources={"inbox": {"type": "folder", "path": "/tmp/pictures"}})
    assert lines[1:] == ["BindReadOnlyPaths=-/tmp/pictures"]


def test_a_usb_camera_opens_video_devices_alone() -> None:
    lines = rendered(sources={"usb": {"type": "v4l2"}})
    assert "PrivateDevices=no" in lines
    assert "DevicePolicy=closed" in lines
    assert [line for line in lines if line.startswith("DeviceAllow")] == ["DeviceAllow=char-video4linux rw"]
    assert "SupplementaryGroups=video" in lines
    assert not [line for line in lines if "NETLINK" in line]


@pytest.mark.parametrize("source", [{"type": "picamera"}, {"type": "command", "command": ["rpicam-vid", "-o", "-"]}])
def test_a_camera_at_the_connector_opens_what_libcamera_needs(source: dict[str, object]) -> None:
    lines = rendered(sources={"csi": source, "usb": {"type": "v4l2"}})
    allowed = [line.split("-")[1] for line in lines if line.startswith("DeviceAllow")]
    assert allowed == ["video4linux rw", "media rw", "dma_heap rw"]
    assert "RestrictAddressFamilies=AF_NETLINK" in lines


def test_credentials_are_loaded_from_beside_the_configuration() -> None:
    found = drop_in.Found(credentials=("mqtt-password",), credentials_dir=Path("/etc/x/credentials"))
    assert rendered(found)[1:] == ["LoadCredential=mqtt-password:/etc/x/credentials/mqtt-password"]


def test_what_only_a_group_may_read_is_read_as_one_of_it() -> None:
    assert rendered(drop_in.Found(groups={Path("/srv/pictures"): "games"}))[1:] == ["SupplementaryGroups=games"]


def test_another_state_directory_can_be_written() -> None:
    assert rendered(state_dir="/mnt/ssd/edge")[-2:] == ["[Service]", "ReadWritePaths=-/mnt/ssd/edge"]


def test_the_start_waits_for_the_disks_of_model_and_state() -> None:
    """Wherever one is mounted; it is not required, as the service goes on when one of them goes."""
    lines = rendered(model={"name": "/mnt/usb/my model"}, state_dir="/mnt/ssd")
    mounts = "mnt.mount mnt-usb.mount mnt-usb-my\\x20model.mount mnt-ssd.mount"
    assert lines[:4] == ["[Unit]", f"Wants={mounts}", f"After={mounts}", "[Service]"]
    own = "/var/lib/edge-daemon/models/x"
    assert rendered(model={"name": own}) == ["[Service]"], "systemd waits for its own state directory by itself"


@pytest.mark.parametrize("path", ["/mnt", "/a-b/c_d:e.f", "/.hidden/.x", "/mnt/my 100%\\ ä"])
def test_mounts_are_named_as_systemd_names_them(path: str) -> None:
    program = shutil.which("systemd-escape")
    if program is None:
        missing("systemd")
    argv = [program, "--path", "--suffix=mount", path]
    told = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert drop_in.mount_unit(Path(path)) == told.stdout.strip()


def test_the_strict_profile_closes_the_network_but_for_what_is_named() -> None:
    found = drop_in.Found(reaches=[drop_in.Reach("mqtt.host: broker", ("192.168.1.5", "fd00::5"))])
    assert rendered(found)[1:] == ["IPAddressDeny=any", "IPAddressAllow=192.168.1.5 fd00::5"]


def test_broker_and_cameras_are_the_hosts() -> None:
    camera = {"type": "rtsp", "url": "rtsp://pi:hush@cam.local:554/1"}
    values = {"mqtt": {"host": "broker.local"}, "sources": {"porch": camera, "inbox": FOLDER}}
    found = dict(drop_in.hosts(config.Config.model_validate(values)))
    assert found == {"mqtt.host": "broker.local", "sources.porch.url": "cam.local"}


def reached(wanted: dict[str, str], allow: list[str], known: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    found = unit_command.reaches(iter(wanted.items()), allow, lambda host: known.get(host, ()))
    return [reach.addresses for reach in found if "name servers" not in reach.what]


def test_a_name_is_looked_up_and_an_address_is_taken() -> None:
    known = {"broker": ("192.168.1.5",), "10.0.0.7": ("10.0.0.7",)}
    assert reached({"mqtt.host": "broker", "sources.a.url": "10.0.0.7"}, [], known) == [("192.168.1.5",), ("10.0.0.7",)]


def test_a_name_without_an_address_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UnavailableError, match=r"mqtt.host: value 'broker': it has no known address now.*--allow"):
        reached({"mqtt.host": "broker"}, [], {})
    assert reached({"mqtt.host": "broker"}, ["192.168.1.7/24"], {}) == [("192.168.1.0/24",)]


def test_a_network_that_is_none_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--allow: value 'home'"):
        reached({}, ["home"], {})


def test_name_servers_are_allowed_where_there_are_names(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# nameserver 9.9.9.9\nsearch home\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\n")
    assert unit_command.name_servers(file) == ("192.168.1.1", "fe80::1")
    assert unit_command.name_servers(tmp_path / "none") == ()


def test_localhost_has_addresses_of_loopback() -> None:
    assert "127.0.0.1" in unit_command.addresses("localhost")
    assert unit_command.addresses("fe80::1%eth0") == ("fe80::1",)


@pytest.mark.parametrize(
    ("mode", "group", "expected"),
    [(0o755, 60, ""), (0o750, 60, "games"), (0o700, 60, ""), (0o750, 54321, "54321")],
)
def test_a_folder_for_one_group_adds_the_service_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, group: int, expected: str
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root gives a folder to another group")
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(mode)
    assert unit_command.reading_group(tmp_path) == expected
    assert ("setfacl" in capsys.readouterr().err) == (mode == 0o700)


def test_the_instance_is_named_by_its_configuration() -> None:
    assert unit_command.unit_of(Path("/etc/edge-daemon/config.yaml")) == "edge-daemon.service"
    assert unit_command.unit_of(Path("/etc/edge-daemon/porch.yaml")) == "edge-daemon@porch.service"


def test_the_command_prints_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a password from a credential, which it does not show."""
    for name in ("EDGE_DAEMON_STATE_DIR", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(unit_command, "UNITS", tmp_path / "units")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/pw").write_text("hush\n")
    file = tmp_path / "porch.yaml"
    file.write_text(
        "# password: !credential old\nmqtt: {host: 127.0.0.1, username: pi, password: !credential pw}\n"
        "sources:\n  inbox: {type: folder, path: /srv/pictures}\n"
    )
    command = ["systemd", "render", "-c", str(file), "--strict"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert f"LoadCredential=pw:{tmp_path}/credentials/pw\n" in text
    assert "IPAddressAllow=127.0.0.1\n" in text
    assert "hush" not in text
    assert "old" not in text
    assert cli.main([*command, "--write"]) == 0
    written = tmp_path / "units/edge-daemon@porch.service.d/50-configuration.conf"
    assert written.read_text() == text
    assert "systemctl restart edge-daemon@porch.service" in capsys.readouterr().out
    assert cli.main([*command, "--write"]) == 0
    assert "unchanged" in capsys.readouterr().out


def test_allow_without_strict_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sources:\n  inbox: {type: folder, path: /srv/pictures}\n")
    assert cli.main(["systemd", "render", "-c", str(file), "--allow", "10.0.0.0/8"]) == exit_codes.CONFIG
    assert "--allow needs --strict" in capsys.readouterr().err
