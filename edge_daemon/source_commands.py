"""The `edge-daemon source …` commands: what cameras are there, and what one of them sees.

Imported by every command, so it is light: each function imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_daemon import subcommand
from edge_daemon.clock import on_the_wall
from edge_daemon.errors import EdgeDaemonError, UnavailableError
from edge_daemon.exit_codes import OK, USAGE
from edge_daemon.messages import Frame, Problem
from edge_daemon.shown_name import shown_name
from edge_daemon.subcommand import Commands

if TYPE_CHECKING:
    from edge_daemon.attached import ConnectorCamera, VideoDevice
    from edge_daemon.child import Child
    from edge_daemon.source_config import LiveSource, SourceConfig

FOLDER_S = 60.0
QUALITY = 90
NOTHING = """\
no camera is attached that this user can see; check:
  on the camera connector: the ribbon cable at both ends; camera_auto_detect=1 in /boot/firmware/config.txt
  by USB: `lsusb` and `ls /dev/video*`; try another port, or a hub with its own power
  both: whether this user is in the group video (`id`), and what the kernel says (`dmesg`)
network cameras are not listed: configure one with its address, with `type: rtsp` or `type: http`"""


def add(commands: Commands) -> None:
    """Put `source` and what follows it among the commands."""
    top = commands.add_parser(
        "source",
        help="list attached cameras; try a source",
        description="List attached cameras, or try a source of the configuration.",
        epilog="examples:\n  edge-daemon source list\n  edge-daemon source test porch -c /etc/edge-daemon/config.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = subcommand.add(
        kinds,
        "list",
        "list attached cameras, with configuration to paste",
        "  edge-daemon source list\n  edge-daemon source list --json | jq '.cameras[].name'",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    listing.set_defaults(command=list_cameras)
    trying = subcommand.add(
        kinds,
        "test",
        "grab one picture from a source, write it to a file, and say whether it would be captioned",
        "  edge-daemon source test porch -c config.yaml\n"
        "  edge-daemon source test porch -c config.yaml --out /tmp/porch.jpg --json",
    )
    trying.add_argument("name", metavar="NAME", help="name of a source in the configuration")
    subcommand.add_config_option(trying)
    out = "the JPEG to write (default: NAME.jpg in the current directory)"
    trying.add_argument("--out", metavar="FILE", type=Path, help=out)
    trying.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    trying.set_defaults(command=test)


def list_cameras(arguments: argparse.Namespace) -> int:
    """`edge-daemon source list`."""
    from edge_daemon import attached, grabber_settings
    from edge_daemon.source_config import PicameraConfig

    argv = [*grabber_settings.argv(PicameraConfig(type="picamera")), "--list"]
    at_connector, trouble = attached.connector_cameras(argv)
    by_usb, problems = attached.video_devices()
    cameras = attached.named([*at_connector, *by_usb])
    problems += [f"cameras on the connector: {trouble}"] if trouble else []
    if arguments.json:
        entries = [{"source": name, **asdict(camera), "yaml": camera.yaml(name)} for name, camera in cameras.items()]
        print(json.dumps({"cameras": entries, "problems": problems}))
        return OK
    for line in _list_in_words(cameras):
        print(line)
    for problem in problems:
        print(f"not asked: {problem}", file=sys.stderr)
    return OK


def _list_in_words(cameras: dict[str, VideoDevice | ConnectorCamera]) -> Iterator[str]:
    if not cameras:
        yield NOTHING
        return
    for camera in cameras.values():
        yield f"{camera.name}: {camera.place}"
        for kind in camera.formats:
            between = " to " if kind.stepwise else ", "
            yield f"    {kind.code} ({kind.description}): {between.join(f'{w}×{h}' for w, h in kind.sizes_px)}"
    yield "\nto paste into the configuration:\n\nsources:"
    for name, camera in cameras.items():
        yield camera.yaml(name).rstrip()


def test(arguments: argparse.Namespace) -> int:
    """`edge-daemon source test`."""
    from edge_daemon import config
    from edge_daemon.source_config import LiveSource

    sources = config.load(arguments.config).sources
    if arguments.name not in sources:
        known = ", ".join(sources)
        print(f"edge-daemon: {arguments.config} has no source {arguments.name!r}; it has: {known}", file=sys.stderr)
        return USAGE
    source = sources[arguments.name]
    frame, said = asyncio.run(_try(arguments.name, source))
    out = arguments.out or Path(f"{arguments.name}.jpg")
    _write(frame, out)
    document = {"source": arguments.name, "type": source.type, "place": source.place, "file": str(out), **said}
    print(json.dumps(document) if arguments.json else _test_in_words(document, isinstance(source, LiveSource)))
    return OK


async def _try(name: str, source: SourceConfig) -> tuple[Frame, dict[str, Any]]:
    """A picture of a source, by the grabber that the daemon would start, and what there is to say of it."""
    from edge_daemon import grabber_settings
    from edge_daemon.capture import SILENCE_S, grabber
    from edge_daemon.source_config import FolderConfig, LiveSource

    live = source if isinstance(source, LiveSource) else None
    limit_s = FOLDER_S if live is None else live.open_timeout_s + live.read_timeout_s + SILENCE_S
    began_s = time.monotonic()
    _progress(f"starting the grabber of {name}")
    told = (
        grabber_settings.of_current_picture(source)
        if isinstance(source, FolderConfig)
        else grabber_settings.settings(source)
    )
    async with grabber(f"grabber {name}", grabber_settings.argv(source), told, []) as (child, decoder):
        ready_s = time.monotonic() - began_s
        _progress(f"{decoder}: waiting for a picture, {limit_s:.0f} s at most")
        frame = await _picture(child, name, limit_s)
        came_s, came_unix_s = time.monotonic(), time.time()
        said = {
            "width_px": frame.width_px,
            "height_px": frame.height_px,
            "original_width_px": frame.original_width_px,
            "original_height_px": frame.original_height_px,
            "captured_at": datetime.fromtimestamp(frame.captured_at_s, UTC).isoformat(timespec="milliseconds"),
            "age_s": round(came_unix_s - frame.captured_at_s, 3),
            "decoder": decoder,
            "ready_s": round(ready_s, 3),
            "waited_s": round(came_s - began_s - ready_s, 3),
            "decode_ms": round(frame.decode_ms, 1),
            "gate": None if live is None else await _gate(child, name, live, frame, limit_s),
        }
    return frame, said


async def _picture(child: Child, name: str, limit_s: float) -> Frame:
    """The next picture. Raises UnavailableError with the reason why there is none, or ChildError."""
    from edge_daemon.capture import next_picture

    try:
        async with asyncio.timeout(limit_s):
            answer = await next_picture(child, lambda idle: _progress(idle.problem or "still waiting"), fresh=True)
    except TimeoutError:
        raise UnavailableError(f"source {name}: no picture came within {limit_s:.0f} s") from None
    if isinstance(answer, Problem):
        where = f"{shown_name(answer.file.name)}: " if answer.file else ""
        raise UnavailableError(f"source {name}: {where}{answer.reason}")
    return answer


async def _gate(child: Child, name: str, source: LiveSource, frame: Frame, limit_s: float) -> dict[str, Any]:
    """What the gate says of this picture, and of another one when the first has been captioned and time has passed."""
    from edge_daemon.gate import Gate

    gate = Gate(source.gate, source.interval_s)
    now_s, local, first = time.monotonic(), on_the_wall(), bytes.fromhex(frame.thumbnail_hex)
    verdict = gate.judge(first, now_s, local)
    said: dict[str, Any] = {**asdict(verdict), "next": None}
    with suppress(EdgeDaemonError):  # a program that writes one picture only
        after = await _picture(child, name, limit_s)
        gate.published(first, now_s)
        later_s = now_s + source.interval_s + source.gate.cooldown_s
        said["next"] = asdict(gate.judge(bytes.fromhex(after.thumbnail_hex), later_s, local))
    return said


def _write(frame: Frame, out: Path) -> None:
    from PIL import Image

    picture = Image.frombytes("RGB", (frame.width_px, frame.height_px), frame.payload)
    try:
        picture.save(out, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UnavailableError(f"--out {out}: it cannot be written: {error.strerror}") from error


def _test_in_words(said: dict[str, Any], live: bool) -> str:
    lines = [
        f"{said['source']} ({said['type']}, {said['place']}): {said['width_px']}×{said['height_px']} pixels of "
        f"{said['original_width_px']}×{said['original_height_px']}, written to {said['file']}",
        f"  taken at {said['captured_at']}, {said['age_s']:.1f} s old when it came",
        f"  {said['decoder']}: ready after {said['ready_s']:.1f} s, the picture {said['waited_s']:.1f} s later; "
        f"decoding and shrinking took {said['decode_ms']:.0f} ms",
    ]
    if live:
        lines.append(f"  the gate: this picture would {_verdict(said['gate'])}")
        if said["gate"]["next"] is not None:
            lines.append(f"    after that, and after the cooldown, the next one would {_verdict(said['gate']['next'])}")
    return "\n".join(lines)


def _verdict(said: dict[str, Any]) -> str:
    return f"{'be captioned' if said['passes'] else 'be skipped'} ({said['why']})"


def _progress(what: str) -> None:
    """For people who wait; silence otherwise."""
    if sys.stderr.isatty():
        print(f"{what} …", file=sys.stderr, flush=True)
