"""What a grabber is told: every key of its source, in its own words; and how it is started."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from edge_daemon import grabber_settings
from edge_daemon.source_config import SourceConfig, TaggedSource
from edge_daemon.units import MIB

SECRET = "hush-hush"
TIMES = {"open_timeout_s": 20.0, "read_timeout_s": 4.0}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "folder": (
        {"path": "/srv", "pattern": "*.jpg", "recursive": False, "poll": True, "settle_s": 1.5, "rescan_s": 9.0}
        | {"max_pixels": 5, "max_file_mib": 2, "decode_memory_mib": 300, "decode_timeout_s": 7.0},
        {"path": "/srv", "pattern": "*.jpg", "recursive": False, "poll": True, "settle_s": 1.5, "rescan_s": 9.0}
        | {"max_pixels": 5, "max_file_bytes": 2 * MIB, "decode_memory_bytes": 300 * MIB, "decode_timeout_s": 7.0},
    ),
    "rtsp": (
        {"url": "rtsp://a/b", "username": "me", "password": SECRET, "transport": "udp", "decode": "all", **TIMES},
        {"type": "stream", "url": "rtsp://a/b", "username": "me", "password": SECRET, "transport": "udp"}
        | {"decode": "all", **TIMES},
    ),
    "v4l2": (
        {"device": "/dev/video3", "width_px": 800, "height_px": 600, "fps": 5.0, "format": "mjpeg", **TIMES},
        {"device": "/dev/video3", "width_px": 800, "height_px": 600, "fps": 5.0, "format": "mjpeg", **TIMES},
    ),
    "command": ({"command": ["a", "b"], **TIMES}, {"command": ["a", "b"], **TIMES}),
    "picamera": (
        {"camera": 1, "width_px": 64, "height_px": 64, "fps": 1.0, "rotation": 180, "hflip": True, "vflip": True}
        | {"autofocus": "manual", "lens_position": 2.0, "exposure_us": 5, "gain": 2.0, "exposure_value": -1.0}
        | {"hdr": True, "tuning_file": "/t.json", "python": "/opt/python3", **TIMES},
        {"camera": 1, "width_px": 64, "height_px": 64, "fps": 1.0, "rotation": 180, "hflip": True, "vflip": True}
        | {"autofocus": "manual", "lens_position": 2.0, "exposure_us": 5, "gain": 2.0, "exposure_value": -1.0}
        | {"hdr": True, "tuning_file": "/t.json", **TIMES},
    ),
}


def source(**keys: Any) -> SourceConfig:
    made: SourceConfig = TypeAdapter(TaggedSource).validate_python(keys)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_reaches_the_grabber_and_nothing_else(kind: str) -> None:
    keys, expected = KINDS[kind]
    told = grabber_settings.settings(source(type=kind, **keys))
    assert json.loads(json.dumps(told)) == {"type": kind, "max_side_px": 512, **expected}


@pytest.mark.parametrize("kind", KINDS)
def test_no_setting_is_an_argument(kind: str) -> None:
    made = source(type=kind, **KINDS[kind][0])
    argv = " ".join(grabber_settings.argv(made))
    assert SECRET not in argv + repr(made)
    assert argv.startswith("/opt/python3 -I ") is (kind == "picamera")


def test_the_current_picture_of_a_folder_is_looked_for_where_the_folder_is() -> None:
    keys, told = KINDS["folder"]
    folder = source(type="folder", **keys)
    assert folder.type == "folder"
    wanted = {key: value for key, value in told.items() if key not in ("poll", "settle_s", "rescan_s")}
    assert grabber_settings.of_current_picture(folder) == {"type": "single", "max_side_px": 512, **wanted}
