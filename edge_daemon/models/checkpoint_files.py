"""Which files a safetensors checkpoint is made of, and what their headers say. Reads no numbers.

Only safetensors: a pickle runs whatever code it holds when it is opened, so it is recognised and refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from edge_daemon.errors import ModelError
from edge_daemon.model_files import WEIGHTS
from edge_daemon.models.upstream import read_json

INDEX = "model.safetensors.index.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of torch.save (a zip since 1.6, a bare pickle before)."""


@dataclass(frozen=True)
class Header:
    """One tensor of the source."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def refuse_pickle(source: Path) -> None:
    """Raise ModelError when `source` is a pickle by its name or its first bytes, or a directory of nothing else."""
    inside = sorted(source.iterdir()) if source.is_dir() else [source]
    pickles = [path for path in inside if path.is_file() and _is_pickle(path)]
    if pickles and not any(path.suffix == ".safetensors" and path not in pickles for path in inside):
        raise ModelError(
            f"{pickles[0]} is a pickle: opening one runs whatever code is in it, so this program never does; "
            f"ask its author for safetensors, or convert it on a machine you can lose (safetensors.torch.save_file)"
        )


def _is_pickle(path: Path) -> bool:
    """By its name or its first bytes. A safetensors file begins with the length of its header, which may look alike."""
    with path.open("rb") as file:
        first = file.read(9)
    return path.suffix in PICKLES or (first.startswith(PICKLE_MAGIC) and not first.endswith(b"{"))


def files_of(source: Path) -> list[Path]:
    """The safetensors files of a source, in order."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ModelError(f"{source}: no such file or directory")
    if (source / INDEX).is_file():
        return _shards(source)
    found = sorted(source.glob("*.safetensors"))
    if (source / WEIGHTS) in found:
        return [source / WEIGHTS]
    if len(found) == 1:
        return found
    what = (
        f"several safetensors files ({', '.join(p.name for p in found)}) and no {INDEX}" if found else f"no {WEIGHTS}"
    )
    raise ModelError(f"{source}: {what}; give the file itself, or the whole directory of the checkpoint")


def _shards(source: Path) -> list[Path]:
    """The files that the index names, all of them there. Raises ModelError for names that leave the directory."""
    weight_map = read_json(source / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{source / INDEX}: no weight_map of tensor names and files")
    names = sorted(set(weight_map.values()))
    foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    missing = [name for name in names if name not in foreign and not (source / name).is_file()]
    if foreign or missing or not names:
        what = f"names {foreign[0]!r}, which is not a file beside it" if foreign else f"is not complete: {missing}"
        raise ModelError(f"{source / INDEX}: the index {what}")
    files = [source / name for name in names]
    unlisted = weight_map.keys() - headers_of(files).keys()
    if unlisted:
        raise ModelError(f"{source / INDEX}: in none of the files: {', '.join(sorted(unlisted)[:10])}")
    return files


def headers_of(files: list[Path]) -> dict[str, Header]:
    """All tensors of all files. Raises ModelError for a damaged file or a tensor that is there twice."""
    found: dict[str, Header] = {}
    for file in files:
        try:
            with cast("Any", safe_open(file, framework="pt", device="cpu")) as opened:
                for key in opened.keys():  # noqa: SIM118  it is no dict
                    header = opened.get_slice(key)
                    if key in found:
                        raise ModelError(f"{file}: {key} is also in {found[key].file.name}")
                    found[key] = Header(file, header.get_dtype(), tuple(header.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a usable safetensors file: {error}") from error
    return found
