"""The configured model: whether it is here, whole, and fits; and one caption by it, timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_daemon import memory, rehearsal, variant
from edge_daemon.config import default_state_dir
from edge_daemon.doctor.finding import Finding, Fix, ok, problem, skipped
from edge_daemon.doctor.subject import Subject
from edge_daemon.errors import ConfigError, EdgeDaemonError, ModelError
from edge_daemon.models.catalogue import Artefact, RemoteFile
from edge_daemon.models.inventory import memory_of
from edge_daemon.models.pull import PART
from edge_daemon.models.store import BUILT_IN, Store, sha256_of
from edge_daemon.models.store import look as look_at
from edge_daemon.units import MIB

CAPTION_S = 540.0
"""Loading 2 GB from an SD card takes a Raspberry Pi 4 about a minute, a caption some seconds."""
LAST_WORDS = 300


def look(subject: Subject) -> Iterator[Finding]:
    """Presence, and the hash of every file."""
    if subject.config is None:
        yield skipped("model", "needs a usable configuration")
        return
    try:
        directory = directory_of(subject)
    except EdgeDaemonError as error:
        yield absent(subject, str(error))
        return
    size_mib = look_at(directory).size_bytes / MIB
    yield ok("model", f"{subject.config.model.name}: {size_mib:.0f} MiB in {directory}")
    yield verified(directory, subject.config.model.name, subject.state_dir)
    if subject.service_pid is not None:
        yield skipped("model.memory", f"the service (process {subject.service_pid}) has it in memory now")
        return
    yield fits(directory, subject)


def directory_of(subject: Subject) -> Path:
    """Of the configured model, as the service chooses it. Raises ConfigError and ModelError."""
    assert subject.config is not None
    model = subject.config.model
    return variant.resolve(model.name, model.variant, model.precision, subject.state_dir, _budget(subject))[0]


def absent(subject: Subject, why: str) -> Finding:
    """It is not here, or not whole: perhaps a download was cut."""
    assert subject.config is not None
    name = subject.config.model.name
    wanted = variant.STORED["0.5b"] if name == variant.FAMILY else name
    known = next((artefact for artefact in subject.catalogue if artefact.name == wanted), None)
    meaning = "The service ends with exit status 78 when it starts, and is not started again."
    if known is None:
        return problem("model", why, meaning, "edge-daemon model list")
    pull = f"{store_command(subject.state_dir)} pull {known.name}"
    incomplete = (subject.state_dir / "models" / known.name).exists()
    parts = {path for file in known.files for path in parts_of(file)}  # several files may be of one repository
    if parts:
        have_mib, all_mib = sum(path.stat().st_size for path in parts) / MIB, (known.download_bytes or 0) / MIB
        meaning += f" A download was interrupted after {have_mib:.0f} of {all_mib:.0f} MiB; it continues from there."
    if incomplete:
        pull += " --replace"
    return problem("model", why, meaning, pull, _pull(subject, known, incomplete) if parts or incomplete else None)


def store_command(state_dir: Path) -> str:
    """How the model store of this state directory is told something: it knows no configuration."""
    place = "" if state_dir == default_state_dir() else f"EDGE_DAEMON_STATE_DIR={state_dir} "
    return f"sudo {place}edge-daemon model"


def parts_of(file: RemoteFile) -> list[Path]:
    """What has arrived of it, in the cache of the hub's client."""
    folder = f"models--{file.repository.replace('/', '--')}"
    return sorted((hub_cache() / folder / "blobs").glob(f"*{PART}"))


def hub_cache() -> Path:
    """As huggingface_hub has it (its documentation, "Environment variables")."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    default = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or f"{default}/huggingface").expanduser() / "hub"


def _pull(subject: Subject, known: Artefact, replace: bool) -> Fix:
    def do() -> str:
        from edge_daemon.models.pull import pull

        directory = pull(known, Store(subject.state_dir), replace=replace)
        return f"{known.name} is in {directory}"

    what = f"fetch the missing parts of {known.name} and import it; this takes minutes"
    return Fix(what, f"{store_command(subject.state_dir)} remove {known.name}", do)


def verified(directory: Path, name: str, state_dir: Path) -> Finding:
    """Every file as it was when it was imported."""
    files = look_at(directory).provenance.get("files")
    if name in BUILT_IN:
        return ok("model.files", "built in")
    if not isinstance(files, dict) or not files:
        return skipped("model.files", f"{directory} was not imported by edge-daemon, so its files cannot be checked")
    changed = [file for file, wanted in sorted(files.items()) if _sha256(directory / file) != wanted]
    if not changed:
        return ok("model.files", f"{len(files)} files are unchanged since the import")
    return problem(
        "model.files",
        f"changed since the import: {', '.join(str(directory / file) for file in changed)}",
        "A damaged model produces nonsense or crashes. If nobody changed it, the card or disk is failing.",
        f"{store_command(state_dir)} pull {name} --replace",
    )


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def fits(directory: Path, subject: Subject) -> Finding:
    """By the rules of the worker itself."""
    assert subject.config is not None
    model = subject.config.model
    verdict = memory_of(directory, _budget(subject), model.precision, model.kv_precision)
    if verdict["fits"]:
        return ok("model.memory", verdict["why"])
    return problem(
        "model.memory",
        verdict["why"],
        "When it starts, the service waits for memory, or ends with exit status 69 if there can never be enough.",
        "edge-daemon model list shows which model fits; set model.precision to auto, end other programs (free -h; top)",
    )


def _budget(subject: Subject) -> memory.Budget:
    assert subject.config is not None
    reading = subject.places.memory.read(None)
    return memory.budget(memory.limits_of(reading, subject.config.model.memory_limit_bytes))


def caption(subject: Subject) -> Iterator[Finding]:
    """One, by the command that a user would give, in a process of its own."""
    if subject.caption == "no":
        yield skipped("caption", "--no-caption")
        return
    if subject.config is None:
        yield skipped("caption", "needs a usable configuration")
        return
    if subject.service_pid is not None and subject.caption == "auto":
        yield skipped("caption", "the service is captioning; with --caption a second model is loaded beside it")
        return
    try:
        directory = directory_of(subject)
    except (ConfigError, ModelError):
        yield skipped("caption", "there is no model")
        return
    if subject.caption == "auto" and fits(directory, subject).state != "ok":
        yield skipped("caption", "too little memory is free")
        return
    yield captioned(directory, subject.config.model.device, subject.config.model.precision)


def captioned(directory: Path, device: str, precision: str, deadline_s: float = CAPTION_S) -> Finding:
    """What `edge-daemon caption` says of a picture of colours, and how long it took, loading included."""
    with tempfile.TemporaryDirectory(prefix="edge-daemon-") as scratch:
        picture = Path(scratch) / "colours.png"
        picture.write_bytes(png())
        argv = [sys.executable, "-P", "-m", "edge_daemon", "caption", str(picture), "--json", "--max-tokens", "20"]
        argv += ["--model", f"{directory.absolute()}/", "--device", device, "--precision", precision]
        start_s = time.monotonic()
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=deadline_s, check=False)
        except subprocess.TimeoutExpired:
            meaning = "The service would give up, too: the board is too slow, too busy, or swapping."
            return problem("caption", f"no caption within {deadline_s:.0f} s", meaning, "free -h; uptime")
    took_s = time.monotonic() - start_s
    said = _document(done.stdout)
    if done.returncode or "caption" not in said:
        last = said.get("error") or (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        meaning = "The service would fail in the same way."
        return problem("caption", str(last)[:LAST_WORDS], meaning, "edge-daemon model verify; edge-daemon bench")
    work_s = sum(said["latency_ms"].values()) / 1000
    words = f"{work_s:.1f} s a picture in {said['precision']}, {took_s - work_s:.1f} s to load"
    return ok("caption", f"{words}; of a picture of colours it says: {said['caption']}")


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def png() -> bytes:
    """The picture of rehearsal.py as a file (PNG specification, 5.3 and 11)."""
    frame = rehearsal.request()
    row = frame.width_px * 3
    lines = b"".join(b"\0" + frame.payload[y * row : (y + 1) * row] for y in range(frame.height_px))
    header = frame.width_px.to_bytes(4) + frame.height_px.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (len(d).to_bytes(4) + kind + d + zlib.crc32(kind + d).to_bytes(4) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
