"""The model store: `STATE_DIR/models/NAME/`, one directory a model, each of them complete or not there at all.

A model is made in a hidden directory beside its place, written to the disk and renamed. Whatever stops that,
a power cut included, leaves the store as it was: the next import sweeps up what a killed one left behind.
Light: it imports no library, and knows neither graphs nor tensors nor the network.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from edge_daemon import demo
from edge_daemon.errors import ConfigError, ModelError, UnavailableError
from edge_daemon.model_files import CONFIG, GRAPHS, INITIAL_KV, TOKENIZER, WEIGHTS
from edge_daemon.units import MIB

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done ("text_decoder.onnx") and the share of it that is done, 0…1."""

BUILT_IN = {"demo-shapes": demo.MODEL_DIR}
"""Models that come with the package."""
FAMILY = "moondream"
"""In a configuration: the variant of it that fits (`edge_daemon.variant`)."""
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""Names of models: no slash, and none that hides or climbs."""
STAGING, RETIRED, LOCK = ".{}.edge-daemon-staging", ".{}.edge-daemon-retired", ".edge-daemon-import.lock"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def silent(what: str, share: float) -> None:
    """A `Progress` that says nothing."""


def between(progress: Progress, begin: float, end: float) -> Progress:
    """The progress of one stage, as a part of the whole."""
    return lambda what, share: progress(what, begin + (end - begin) * share)


@dataclass(frozen=True)
class Installed:
    """One model of the store, as its files say it."""

    name: str
    directory: Path
    size_bytes: int
    engine: str
    """`torch` or `onnx`; empty when config.json cannot be read."""
    provenance: dict[str, Any] = field(default_factory=dict)


class Store:
    """The models of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        """`state_dir` need not exist yet."""
        self.root = state_dir / "models"

    @classmethod
    def around(cls, directory: Path) -> Self:
        """A store in which `directory` is the model named `directory.name`: how to import to any place."""
        store = cls(directory)
        store.root = directory.absolute().parent
        return store

    def directory(self, name: str) -> Path:
        """Where the model `name` is, or would be. Raises ConfigError for a name that cannot be one."""
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is not a valid model name: use at most 100 letters, digits, dots, hyphens and underscores, "
                f"and no dot in front"
            )
        return self.root / name

    def names(self) -> list[str]:
        """Names in the store, sorted."""
        found = {path.parent.name for path in self.root.glob(f"*/{CONFIG}")}
        return sorted(name for name in found if NAME.fullmatch(name))

    def installed(self) -> list[Installed]:
        """All models in the store."""
        return [look(self.root / name) for name in self.names()]

    def refuse_name(self, name: str, replace: bool = False) -> None:
        """Raise ConfigError for a built-in or malformed name, ModelError for one that is taken."""
        directory = self.directory(name)
        if name in BUILT_IN:
            raise ConfigError(f"{name} is built in and cannot be replaced: choose another name (--name)")
        if name == FAMILY:
            raise ConfigError(f"{name} in a configuration means whichever variant fits: choose another name (--name)")
        if not replace and directory.exists():
            raise ModelError(f"{directory} exists: choose another name (--name), or add --replace")
        if why := _no_model(directory):
            raise ModelError(f"{directory} is not a model, {why}: it is not replaced; choose another directory")

    def check_space(self, needed_bytes: int) -> None:
        """Raise UnavailableError, with both numbers, when the store's disk has less than `needed_bytes` free."""
        free_bytes = free_on_disk(self.root)
        if free_bytes < needed_bytes:
            raise UnavailableError(
                f"{self.root}: {needed_bytes / MIB:.0f} MiB of disk are needed, {free_bytes / MIB:.0f} MiB are free"
            )

    @contextmanager
    def staging(self, name: str, needed_bytes: int = 0, replace: bool = False) -> Iterator[Path]:
        """An empty directory that becomes the model `name` when the block ends well, and vanishes when it does not.

        Raises ConfigError or ModelError for the name, UnavailableError when the disk is too full, cannot be
        written, or another import is running, and ModelError when the block left the model incomplete.
        """
        self.refuse_name(name, replace)
        self.check_space(needed_bytes)
        with self._locked(), disk_errors_in_words():
            self._sweep()
            self.refuse_name(name, replace)
            staging = self.root / STAGING.format(name)
            staging.mkdir()
            try:
                yield staging
                if missing := missing_files(staging):
                    raise ModelError(f"{name}: the import made no {', '.join(missing)}")
                self._publish(staging, name)
            finally:
                self._sweep()

    def remove(self, name: str) -> int:
        """Delete a model; returns the bytes it had. Raises ConfigError for a built-in, ModelError for none."""
        if name in BUILT_IN:
            raise ConfigError(f"{name} is built in and cannot be removed")
        directory = self.directory(name)
        if not directory.is_dir():
            raise ModelError(f"no model {name!r} in {self.root}; there are: {', '.join(self.names()) or 'none'}")
        with self._locked(), disk_errors_in_words():
            if directory.is_symlink():  # the files are where somebody wanted them to be
                directory.unlink()
                return 0
            size_bytes = size_of(directory)
            retired = self.root / RETIRED.format(name)
            directory.rename(retired)  # at once: a daemon that starts now finds the whole model or none
            (retired / CONFIG).unlink(missing_ok=True)  # after a power cut now, it is not taken for a model again
            shutil.rmtree(retired)
        return size_bytes

    def leftovers(self) -> list[Path]:
        """What a killed import has left, its lock included; nothing while an import is running. Reads only."""
        left = [path for pattern in (STAGING, RETIRED) for path in sorted(self.root.glob(pattern.format("*")))]
        lock = self.root / LOCK
        if lock.exists():
            import fcntl  # late: Windows has none, and there is no store there

            with lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return []
            left.append(lock)
        return left

    def sweep(self) -> None:
        """Remove that. Raises UnavailableError while an import is running, and for a disk that cannot be written."""
        with self._locked(), disk_errors_in_words():
            self._sweep()

    def _publish(self, staging: Path, name: str) -> None:
        """Everything to the disk, then the rename; the model that was there before is swept up."""
        directory, retired = self.root / name, self.root / RETIRED.format(name)
        for path in sorted(staging.rglob("*")):
            _flush(path)
        _flush(staging)
        if directory.exists() or directory.is_symlink():  # or to a disk that is not there now
            directory.rename(retired)
        staging.rename(directory)
        _flush(self.root)

    def _sweep(self) -> None:
        """Remove what killed imports left; a model that was moved away for its successor comes back."""
        for left in self.root.glob(STAGING.format("*")):
            _delete(left)
        for left in self.root.glob(RETIRED.format("*")):
            prefix, suffix = RETIRED.split("{}")
            name = left.name.removeprefix(prefix).removesuffix(suffix)
            if missing_files(left) or (self.root / name).exists():
                _delete(left)
            else:
                left.rename(self.root / name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the store; the kernel frees it when the process dies."""
        path = self.root / LOCK
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = _lock(path)
        except OSError as error:
            raise UnavailableError(
                f"{self.root} cannot be written: {error.strerror or error}; run this as the user who owns it "
                f"(on a Pi with the service: sudo), or name another place with EDGE_DAEMON_STATE_DIR"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path) -> int:
    """Create and lock a file. Raises UnavailableError, with the holder's process number, when it is held."""
    import fcntl

    while True:  # of a link that lies there root would write into a file of somebody else
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise UnavailableError(
                f"another process ({holder}) is changing the models in {path.parent}: wait until it is done"
            ) from error
        if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            return file
        os.close(file)  # the holder before us removed this file after we had opened it: it locks nothing


@contextmanager
def disk_errors_in_words() -> Iterator[None]:
    """A full or read-only disk is nobody's bug."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UnavailableError(f"{error.filename or 'the model store'}: {error.strerror}") from error


def missing_files(directory: Path) -> list[str]:
    """What a model directory lacks, by the engine that its config.json names."""
    needed = [CONFIG, TOKENIZER, GRAPHS if engine_of(directory) == "onnx" else WEIGHTS]
    return [name for name in needed if not (directory / name).exists()]


def _no_model(directory: Path) -> str:
    """Why a place is no model and no rest of one, and may be worth something; empty where nothing is."""
    if not directory.exists():
        return ""
    if not directory.is_dir():
        return "it is a file"
    others = {path.name for path in directory.iterdir()} - {CONFIG, TOKENIZER, WEIGHTS, GRAPHS, INITIAL_KV}
    return f"it has {min(others)}" if others and missing_files(directory) else ""


def engine_of(directory: Path) -> str:
    """`torch` or `onnx` by config.json; empty when that cannot be read (whoever opens the model says why)."""
    return str(_config(directory).get("engine", "torch")) if _config(directory) else ""


def look(directory: Path) -> Installed:
    """What a model directory holds."""
    provenance = _config(directory).get("provenance")
    found = provenance if isinstance(provenance, dict) else {}
    return Installed(directory.name, directory, size_of(directory), engine_of(directory), found)


def _config(directory: Path) -> dict[str, Any]:
    """config.json as it is, or nothing: the strict reader is the model's own."""
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def sha256_of(path: Path, what: str = "", progress: Progress = silent) -> str:
    """Of a file, in hex."""
    digest, done_bytes, size_bytes = hashlib.sha256(), 0, max(1, path.stat().st_size)
    with path.open("rb") as source:
        while chunk := source.read(MIB):
            digest.update(chunk)
            done_bytes += len(chunk)
            progress(what, done_bytes / size_bytes)
    return digest.hexdigest()


def free_on_disk(place: Path) -> int:
    """Bytes that we may still write at `place`, which need not exist yet."""
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _delete(place: Path) -> None:
    """A directory with all that is in it, or the link that stands for one."""
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place)


def _flush(path: Path) -> None:
    """Force a file or a directory to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
