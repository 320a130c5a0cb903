"""Any source of a model into the store: told apart by what it is, converted, proven, and only then given its name.

A moonfile becomes float32 weights, which are compared with its graphs (`proof`), or is kept as it is, for ONNX Runtime
to run. A safetensors checkpoint becomes a model directory. Whatever goes wrong, the store is as it was before.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from edge_daemon.choices import Engine
from edge_daemon.errors import ConfigError, ModelError
from edge_daemon.model_files import CONFIG, TOKENIZER
from edge_daemon.models.checkpoint import import_checkpoint
from edge_daemon.models.checkpoint_files import refuse_pickle
from edge_daemon.models.container import GZIP_MAGIC, MAGIC
from edge_daemon.models.interface import measured
from edge_daemon.models.moonfile import import_moonfile
from edge_daemon.models.proof import Proof, prove, refuse_unproven
from edge_daemon.models.store import Progress, Store, between, disk_errors_in_words, sha256_of, silent
from edge_daemon.models.unpacked import unpack
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.tokenizer import Tokenizer
from edge_daemon.scratch import scratch

SCRATCH = ".moonfile"
"""Folder in the staging directory with the graphs, as long as they are needed for the proof."""
VERIFYING = "edge-daemon-verify-"
"""The same, not in the store: that may be another user's."""
UNPACKED, CONVERTED = 0.1, 0.4
"""Shares of the work that are done by then, for the progress bar."""


def import_source(
    source: Path,
    store: Store,
    name: str,
    *,
    engine: Engine = "torch",
    origin: dict[str, str] | None = None,
    expected_sha256: str | None = None,
    replace: bool = False,
    progress: Progress = silent,
) -> Path:
    """Make the model `name` of the store from a moonfile or a safetensors checkpoint; its directory.

    `origin` (repository, commit) goes into the provenance; `expected_sha256` is that of an unpacked moonfile. Raises
    ConfigError and ModelError for a name, a source or an engine that does not fit, for damage, and for a conversion
    that is not equal to its source; UnavailableError for a disk that is too full or a library that is not there.
    """
    packed = is_moonfile(source)
    if not packed and engine == "onnx":
        raise ConfigError(f"{source}: only a moonfile has graphs for engine onnx; safetensors are run by torch")
    with store.staging(name, _size(source), replace) as staging:
        told: dict[str, Any] = {}
        if not packed:
            import_checkpoint(source, staging, name, progress)
        elif engine == "onnx":
            moonfile = unpack(source, staging, expected_sha256, progress)
            (staging / CONFIG).write_text(measured(moonfile, name).to_json(), encoding="utf-8")
        else:
            told = {"proof": _convert(source, staging, name, expected_sha256, progress).report()}
        _refuse_foreign_words(source, staging)
        _add_provenance(staging, (origin or {}) | told)
    return store.directory(name)


def is_moonfile(source: Path) -> bool:
    """Whether it is one, packed or not, rather than a checkpoint. Raises ModelError for anything else."""
    if source.is_dir() or source.suffix == ".safetensors":
        return False
    refuse_pickle(source)
    try:
        with source.open("rb") as file:
            first = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror or error}") from error
    if first != MAGIC and not first.startswith(GZIP_MAGIC):
        raise ModelError(
            f"{source}: it begins with {first!r}, so it is not a moonfile (.mf or .mf.gz); other weights must be "
            f".safetensors files, or a directory with them"
        )
    return True


def _convert(source: Path, staging: Path, name: str, expected_sha256: str | None, progress: Progress) -> Proof:
    """A moonfile as float32 weights, and the proof that they say the same."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=staging) as graphs:
        moonfile = unpack(source, Path(graphs), expected_sha256, between(progress, 0.0, UNPACKED))
        import_moonfile(moonfile, staging, name, between(progress, UNPACKED, CONVERTED))
        return _proven(moonfile.directory, staging, between(progress, CONVERTED, 1.0))


def _proven(graphs: Path, directory: Path, progress: Progress) -> Proof:
    """The proof that passed. Raises ModelError for one that did not."""
    proof = prove(graphs, directory, progress)
    refuse_unproven(proof, load_config(directory).name)
    return proof


def _refuse_foreign_words(source: Path, directory: Path) -> None:
    """No conversion looks at the tokenizer. Raises ModelError for one that cannot be read, or has too many tokens."""
    vocab = load_config(directory).text.vocab
    try:
        size = Tokenizer(directory / TOKENIZER).size
    except ModelError as error:
        raise ModelError(f"{source}: {TOKENIZER} cannot be used: {error.__cause__ or error}") from error
    if not 0 < size <= vocab:
        raise ModelError(f"{source}: {TOKENIZER} has tokens up to number {size - 1}, the weights have {vocab}")


def _add_provenance(directory: Path, told: dict[str, Any]) -> None:
    """Where it came from, and what was written, file by file."""
    config = load_config(directory)
    files = {
        str(path.relative_to(directory)): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != CONFIG
    }
    provenance = config.provenance | told | {"files": files}
    (directory / CONFIG).write_text(changed(config, provenance=provenance).to_json(), encoding="utf-8")


def verify(directory: Path, source: Path | None, progress: Progress = silent) -> dict[str, Any]:
    """Check a model's files against its provenance, and repeat the proof where the moonfile is still there.

    `source` says where it is now. Raises ModelError for a file that changed, for another moonfile, and for a proof
    that does not pass; what is returned has passed, and `note` says what could not be repeated.
    """
    config = load_config(directory)
    _refuse_changed(directory, config)
    checked: dict[str, Any] = {"model": config.name, "files": sorted(config.provenance["files"]), "proof": None}
    moonfile = source or Path(config.provenance.get("path", ""))
    if config.provenance.get("format") != "moonfile" or config.engine == "onnx":
        return checked | {"note": "nothing was converted: its files are the imported ones"}
    if not moonfile.is_file():
        note = f"the comparison needs the moonfile, which is no longer {moonfile}; name it with --source FILE"
        return checked | {"note": note}
    with disk_errors_in_words(), tempfile.TemporaryDirectory(prefix=VERIFYING, dir=scratch()) as graphs:
        unpack(moonfile, Path(graphs), config.provenance["sha256"], between(progress, 0.0, UNPACKED))
        proof = _proven(Path(graphs), directory, between(progress, UNPACKED, 1.0))
        return checked | {"proof": proof.report(), "note": ""}


def _refuse_changed(directory: Path, config: ModelConfig) -> None:
    files = config.provenance.get("files")
    if not files:
        raise ModelError(f"{directory / CONFIG}: no provenance: it was not imported, so it has nothing to compare with")
    problems = []
    for name, wanted in files.items():
        path = directory / name
        found = sha256_of(path) if path.is_file() else "no such file"
        if found != wanted:
            problems.append(f"{path}: sha256 {found}, at its import it was {wanted}")
    if problems:
        raise ModelError("\n".join(problems))


def _size(source: Path) -> int:
    """Bytes that the import will take at the very least; how many more is known only on the way."""
    paths = source.rglob("*.safetensors") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in paths if path.is_file())
