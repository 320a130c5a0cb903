"""Fetches an artefact of the catalogue and hands it to the import.

Through huggingface_hub, so that HF_ENDPOINT, HF_TOKEN, HF_HOME, proxies, offline mode and the cache work as
people know them. The library drops what has arrived when a download fails; here a download keeps its part
file in the cache and goes on from it, in this process or the next. Only the endpoint is asked, and what it
redirects to; telemetry, update checks and the chunk store (Xet) are off unless the user set them otherwise.
Knows nothing of what is inside the files.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from edge_daemon.choices import Engine
from edge_daemon.errors import ModelError, UnavailableError
from edge_daemon.models.catalogue import Artefact, RemoteFile
from edge_daemon.models.store import Progress, Store, free_on_disk, sha256_of, silent
from edge_daemon.units import MIB

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Settings of huggingface_hub, read when it is imported; ours unless the user has set them."""
PART = ".edge-daemon-part"
CHUNK_BYTES = 1 << 20
ETAG = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may become a file name in the cache; the hub's are hex digests."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def pull(
    artefact: Artefact,
    store: Store,
    *,
    engine: Engine = "torch",
    replace: bool = False,
    progress: Progress = silent,
) -> Path:
    """Fetch, check, import; the directory of the model.

    Raises ConfigError or ModelError for a name that is taken, UnavailableError when the disk is too full, the
    network or the hub does not answer as it should, and ModelError for a file that is not what it should be.
    """
    store.refuse_name(artefact.name, replace)
    store.check_space(artefact.importing_bytes)
    paths = [fetch(file, artefact.importing_bytes, store, progress) for file in artefact.files]
    from edge_daemon.models.importing import import_source  # torch and ONNX, which fetching does not need

    first = artefact.files[0]
    with _together(artefact.files, paths) as source:
        return import_source(
            source,
            store,
            artefact.name,
            engine=engine,
            origin={"repository": first.repository, "commit": first.commit},
            expected_sha256=artefact.unpacked_sha256,
            replace=replace,
            progress=progress,
        )


@contextmanager
def _together(files: tuple[RemoteFile, ...], paths: list[Path]) -> Iterator[Path]:
    """One file as it is, or several from several repositories as one directory of links."""
    if len(paths) == 1:
        yield paths[0]
        return
    with tempfile.TemporaryDirectory(prefix="edge-daemon-") as directory:
        for file, path in zip(files, paths, strict=True):
            (Path(directory) / Path(file.path).name).symlink_to(path.resolve())
        yield Path(directory)


def fetch(file: RemoteFile, importing_bytes: int, store: Store, progress: Progress = silent) -> Path:
    """The file in the hub's cache, fetched if need be and checked; a link into the cache.

    `importing_bytes` are needed in the store afterwards, which may be on the same disk. Raises UnavailableError
    and ModelError as `pull` does.
    """
    hub = _hub()
    cached = hub.try_to_load_from_cache(file.repository, file.path, revision=file.commit)
    if isinstance(cached, str):
        _check(Path(cached), file, progress)
        return Path(cached)
    with _errors_in_words(file, hub):
        metadata = _ask(file, hub)
        folder = Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(
            repo_id=file.repository, repo_type="model"
        )
        blob = folder / "blobs" / metadata.etag
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            _download(file, blob, metadata, hub, (importing_bytes, store), progress)
        # finds the blob, asks once more, and makes the cache's links to it
        return Path(hub.hf_hub_download(file.repository, file.path, revision=file.commit))


def _hub() -> Any:
    """The library, imported with our settings. Raises UnavailableError when it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.file_download
    except ImportError as error:
        raise UnavailableError("fetching a model needs the hub's client: pip install 'edge-daemon[models]'") from error
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES  # what a cut loses, and how often the bar moves
    return huggingface_hub


def _ask(file: RemoteFile, hub: Any) -> Any:
    """The hub's answer about a file: etag, size, commit, location. Raises ModelError when it is not our file."""
    url = hub.hf_hub_url(file.repository, file.path, revision=file.commit)
    metadata = hub.get_hf_file_metadata(url)
    if metadata.commit_hash != file.commit:
        raise ModelError(f"{url}: asked for commit {file.commit}, the endpoint answers with {metadata.commit_hash}")
    if not ETAG.fullmatch(metadata.etag or ""):
        raise ModelError(f"{url}: the endpoint names the content {metadata.etag!r}, which is not a digest")
    if file.size_bytes is not None and metadata.size != file.size_bytes:
        raise ModelError(f"{url}: should have {file.size_bytes} bytes, the endpoint offers {metadata.size}")
    return metadata


def _download(
    file: RemoteFile, blob: Path, metadata: Any, hub: Any, afterwards: tuple[int, Store], progress: Progress
) -> None:
    """Fetch to a part file, from where an earlier attempt stopped; check; rename."""
    url = hub.hf_hub_url(file.repository, file.path, revision=file.commit)
    headers = hub.utils.build_hf_headers()
    if _origin(metadata.location) != _origin(url):
        headers.pop("authorization", None)  # the token is the endpoint's, not the content server's
    part = blob.with_name(blob.name + PART)
    with _locked(part) as out:
        have_bytes = out.seek(0, os.SEEK_END)
        if metadata.size is not None and have_bytes > metadata.size:
            have_bytes = out.seek(0)
            out.truncate()
        if metadata.size is not None:
            _check_space(part, metadata.size - have_bytes, *afterwards)
        counted = cast("BinaryIO", _Counted(out, have_bytes, metadata.size, f"fetching {file.path}", progress))
        hub.file_download.http_get(
            metadata.location, counted, resume_size=have_bytes, headers=headers, expected_size=metadata.size
        )
        out.flush()
        os.fsync(out.fileno())
        try:
            _check(part, file, progress, served_sha256=metadata.etag if SHA256.fullmatch(metadata.etag) else None)
        except ModelError:
            part.unlink()  # going on from it would never end well
            raise
        part.rename(blob)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The part file, open for going on; one process at a time."""
    with part.open("ab"):
        pass
    with part.open("r+b") as out:
        import fcntl

        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(f"{part}: another process is fetching this file: wait until it is done") from error
        yield out


def _check_space(part: Path, missing_bytes: int, importing_bytes: int, store: Store) -> None:
    """Raise UnavailableError when what is still to be fetched, and what the import needs, do not fit."""
    one_disk = _device(part) == _device(store.root)
    needed_bytes = missing_bytes + (importing_bytes if one_disk else 0)
    free_bytes = free_on_disk(part.parent)
    if free_bytes < needed_bytes:
        share = f" ({missing_bytes / MIB:.0f} for the download, the rest for the import)" if one_disk else ""
        raise UnavailableError(
            f"{part.parent}: {needed_bytes / MIB:.0f} MiB of disk are needed{share}, {free_bytes / MIB:.0f} MiB are "
            f"free; to download to another disk, set HF_HOME=/path"
        )


def _device(place: Path) -> int:
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    return existing.stat().st_dev


def _origin(url: str) -> str:
    """Scheme, host and port."""
    return "/".join(url.split("/", 3)[:3]).lower()


class _Counted:
    """A file that reports how far it is; what the library needs of a file, and nothing else."""

    def __init__(self, file: BinaryIO, have_bytes: int, size: int | None, what: str, progress: Progress) -> None:
        self._file, self._have_bytes, self._size = file, have_bytes, size
        self._what, self._progress = what, progress

    def write(self, data: bytes) -> int:
        self._have_bytes += len(data)
        self._progress(self._what, self._have_bytes / self._size if self._size else 0.0)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        self._have_bytes = position
        return self._file.seek(position)

    def truncate(self) -> int:
        return self._file.truncate()


def _check(path: Path, file: RemoteFile, progress: Progress, served_sha256: str | None = None) -> None:
    """Raise ModelError, with both values, when size or hash is not as it should be."""
    size_bytes = path.stat().st_size
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        raise ModelError(
            f"{path}: {file.path} should have {file.size_bytes} bytes and has {size_bytes}; {_remedy(path)}"
        )
    expected = file.sha256 or served_sha256
    if expected is None:
        return
    found = sha256_of(path, f"checking {file.path}", progress)
    if found != expected:
        raise ModelError(f"{path}: the sha256 of {file.path} should be {expected} and is {found}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    return "nothing was kept: try again" if path.name.endswith(PART) else "remove that file and pull again"


@contextmanager
def _errors_in_words(file: RemoteFile, hub: Any) -> Iterator[None]:
    """What the library and the network raise, as one UnavailableError that says what was asked and what to try."""
    import httpx2  # the HTTP client of huggingface_hub; its errors are not all OSError

    asked = f"{hub.constants.ENDPOINT}: {file.repository}/{file.path}"
    again = "what has arrived is kept; run the same command again to continue"
    by_hand = "a file fetched elsewhere can be imported: edge-daemon model import FILE"
    try:
        yield
    except hub.errors.OfflineModeIsEnabled as error:
        raise UnavailableError(
            f"{asked} is not in the cache ({hub.constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids asking for it; "
            f"unset it, or {by_hand}"
        ) from error
    except hub.errors.HfHubHTTPError as error:
        raise UnavailableError(f"{asked}: {_refusal(error.response.status_code)}; {by_hand}") from error
    except (httpx2.HTTPError, hub.errors.LocalEntryNotFoundError, hub.errors.FileMetadataError) as error:
        why = str(error.__cause__ or error) or type(error).__name__
        raise UnavailableError(
            f"{asked} cannot be fetched: {why}; is this board online? Set HF_ENDPOINT for a mirror, HTTPS_PROXY for a "
            f"proxy; {again}; {by_hand}"
        ) from error
    except OSError as error:  # a full disk, or a stream that ended early
        raise UnavailableError(f"{asked}: {error}; {again}") from error


def _refusal(status: int) -> str:
    """An HTTP status for people."""
    if status in (401, 403):
        return f"refused (HTTP {status}): a private or gated repository needs HF_TOKEN; if it is set, it is wrong"
    if status == 404:
        return "not there (HTTP 404): the endpoint does not have this file at the pinned commit"
    return f"the endpoint answered HTTP {status}: try again later"
