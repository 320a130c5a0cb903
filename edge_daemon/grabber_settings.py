"""How the grabber of a source is started, and what it is told: from the configuration's words to the grabber's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from edge_daemon.picture_limits import MAX_SIDE_PX
from edge_daemon.source_config import FolderConfig, LiveConfig, LiveSource, PicameraConfig, SourceConfig, StreamConfig
from edge_daemon.units import MIB

ON_THE_SYSTEM_PYTHON = Path(__file__).parent / "sources" / "picamera.py"
"""libcamera's bindings exist for the system's Python only, and what our own environment has stays out of it (-I)."""


def argv(config: SourceConfig | None = None) -> list[str]:
    """The program; none of its settings, as everybody on the machine can read arguments."""
    if isinstance(config, PicameraConfig):
        return [str(config.python), "-I", "-B", str(ON_THE_SYSTEM_PYTHON)]
    return [sys.executable, "-P", "-m", "edge_daemon.grabber"]


def settings(config: SourceConfig) -> dict[str, Any]:
    """What to open, with its login, if it has one."""
    return _of_a_folder(config) if isinstance(config, FolderConfig) else _of_a_camera(config)


def of_current_picture(config: FolderConfig) -> dict[str, Any]:
    """What to open for the newest picture of a folder, whether it was captioned or not."""
    told = _of_a_folder(config)
    return {key: value for key, value in told.items() if key not in ("poll", "settle_s", "rescan_s")} | {
        "type": "single"
    }


def _of_a_folder(config: FolderConfig) -> dict[str, Any]:
    keys = {"type", "path", "pattern", "recursive", "poll", "settle_s", "rescan_s", "max_pixels", "decode_timeout_s"}
    return {
        **config.model_dump(mode="json", include=keys),
        "path": str(config.path),
        "max_side_px": MAX_SIDE_PX,
        "max_file_bytes": config.max_file_mib * MIB,
        "decode_memory_bytes": config.decode_memory_mib * MIB,
    }


def _of_a_camera(config: LiveConfig) -> dict[str, Any]:
    """Its own keys, and how long it may take."""
    keys = type(config).model_fields.keys() - LiveSource.model_fields.keys() - {"python"}
    values = config.model_dump(include=keys | {"open_timeout_s", "read_timeout_s"})
    kind = "stream" if isinstance(config, StreamConfig) else config.type
    return {**{key: _plain(value) for key, value in values.items()}, "type": kind, "max_side_px": MAX_SIDE_PX}


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value
