"""The moonfile container: records in a row, plain or gzip-compressed as a whole, read and written as a stream.

`MOON`, one byte version (1), then records until the end: u32 big-endian length of the name, the name in UTF-8, u64
big-endian length of the content, the content (moondream 0.0.6, moonfile.py). There are no checksums but gzip's own.
Nothing here holds more than one record, and nothing is believed: every length is bounded before it is used.
It does not know what is in a record.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self, cast

from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG, INITIAL_KV, TOKENIZER

MAGIC, VERSION = b"MOON", 1
GZIP_MAGIC = b"\x1f\x8b"
GRAPH_NAMES = (
    "vision_encoder",
    "vision_projection",
    "text_encoder",
    "text_decoder",
    "coord_encoder",
    "coord_decoder",
    "size_encoder",
    "size_decoder",
)
"""The parts of a model, each a record NAME.onnx."""
REQUIRED = (CONFIG, TOKENIZER, INITIAL_KV, *(f"{name}.onnx" for name in GRAPH_NAMES))
"""The client refuses a file that lacks one of these."""
MOST_NAME_BYTES = 4096
MOST_RECORD_BYTES = 4 << 30
"""Twice protobuf's limit; a longer record is no graph but a bomb."""
MOST_RECORDS = 64
CHUNK_BYTES = 1 << 20
COMPRESSION = 6
"""gzip's own default: quantized weights shrink by a tenth, and no level changes that much."""


@dataclass(frozen=True)
class Record:
    """One record of a moonfile that is being read; its content is there until the next record is asked for."""

    name: str
    """A plain file name, such as `text_decoder.onnx`."""
    size: int
    """Bytes."""
    chunks: Iterator[bytes | memoryview] = field(repr=False)
    """The content, once, in pieces of CHUNK_BYTES at most. Raises ModelError where the file ends or is damaged."""

    def read(self) -> bytes:
        """The whole content."""
        return b"".join(self.chunks)

    def copy(self, path: Path) -> str:
        """Write the content to a file, which is overwritten; the sha256 of what was written, in hex."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self.chunks:
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class Digest:
    """What identifies a moonfile, compressed or not: sha256 in hex and size in bytes of the unpacked file."""

    sha256: str
    size: int


class Moonfile:
    """One moonfile, open for one pass. Whether it is compressed is seen from its first bytes, not from its name."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its first bytes. Raises ModelError for anything but a moonfile of version 1."""
        self.path = path
        self._offset = 0
        self._sha256 = hashlib.sha256()
        self._ended = False
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        try:
            packed = self._raw.read(2) == GZIP_MAGIC
            self._raw.seek(0)
            self._size = None if packed else os.fstat(self._raw.fileno()).st_size
            self._stream = cast("BinaryIO", gzip.GzipFile(fileobj=self._raw)) if packed else self._raw
            self._check_header()
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def _check_header(self) -> None:
        magic = self._read(len(MAGIC), "the magic bytes")
        if magic != MAGIC:
            raise self._damaged(f"it begins with {magic!r}, a moonfile begins with {MAGIC!r}", 0)
        version = self._read(1, "the version")[0]
        if version != VERSION:
            raise self._damaged(f"version {version}, only version {VERSION} is known", len(MAGIC))

    def records(self) -> Iterator[Record]:
        """All records, in the file's order; a record that is not read is skipped.

        Raises ModelError for a damaged or truncated file, a name that is none, a record that comes twice or is
        larger than MOST_RECORD_BYTES, and at the end for the required records that did not come.
        """
        seen: set[str] = set()
        while (header := self._next_header(seen)) is not None:
            name, size = header
            seen.add(name)
            content = self._content(name, size)
            yield Record(name, size, content)
            for _ in content:  # what the caller left
                pass
        missing = [name for name in REQUIRED if name not in seen]
        if missing:
            has = ", ".join(sorted(seen)) or "no records"
            raise self._damaged(f"missing {', '.join(missing)}; it has {has}", self._offset)

    def digest(self) -> Digest:
        """Of the unpacked file. Raises ValueError while there are records left to read."""
        if not self._ended:
            raise ValueError("the digest is known behind the last record only")
        return Digest(self._sha256.hexdigest(), self._offset)

    def _next_header(self, seen: set[str]) -> tuple[str, int] | None:
        """Name and size of the next record; None at the end of the file."""
        start = self._offset
        first = self._read_some(4)
        if not first:
            self._ended = True
            return None
        after = f"behind {len(seen)} records" if seen else "behind the header"
        name_bytes = int.from_bytes(first + self._read(4 - len(first), f"a record {after}"), "big")
        if not 0 < name_bytes <= MOST_NAME_BYTES:
            raise self._damaged(f"{after}: a name of {name_bytes} bytes; 1 to {MOST_NAME_BYTES} are right", start)
        raw = self._read(name_bytes, f"the name of a record {after}")
        name = self._plain_name(raw, start)
        if name in seen:
            raise self._damaged(f"record {name} comes twice", start)
        if len(seen) == MOST_RECORDS:
            raise self._damaged(f"more than {MOST_RECORDS} records; a moonfile has {len(REQUIRED)}", start)
        size = int.from_bytes(self._read(8, f"the length of record {name}"), "big")
        if size > MOST_RECORD_BYTES:
            raise self._damaged(f"record {name} says it has {size} bytes; {MOST_RECORD_BYTES} are allowed", start)
        if self._size is not None and size > self._size - self._offset:
            left = self._size - self._offset
            raise self._damaged(f"record {name} says it has {size} bytes, the file ends {left} bytes on", self._offset)
        return name, size

    def _plain_name(self, raw: bytes, start: int) -> str:
        """The last part of a record's name, as the client takes it; nothing that leads out of a directory."""
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"a record's name is not UTF-8: {raw!r}", start) from error
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
            raise self._damaged(f"a record is named {name!r}; a plain file name is right", start)
        return parts[-1]

    def _content(self, name: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._read_some(min(left, CHUNK_BYTES))
            if not chunk:
                raise self._damaged(f"record {name} says it has {size} bytes, {left} of them are missing", self._offset)
            left -= len(chunk)
            yield chunk

    def _read(self, size: int, what: str) -> bytes:
        """Exactly `size` bytes. Raises ModelError when the file ends before."""
        got = b""
        while len(got) < size:
            more = self._read_some(size - len(got))
            if not more:
                raise self._damaged(f"the file ends within {what}", self._offset)
            got += more
        return got

    def _read_some(self, size: int) -> bytes:
        """Up to `size` bytes, none only at the end of the file."""
        try:
            got = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:  # gzip's own: a cut stream, a flipped bit, a wrong checksum
            raise self._damaged(f"it cannot be unpacked: {error}", self._offset) from error
        self._sha256.update(got)
        self._offset += len(got)
        return got

    def _damaged(self, what: str, offset: int) -> ModelError:
        return ModelError(f"{self.path}: {what} (at byte {offset} of the unpacked moonfile)")


def write_records(out: Path, records: Iterable[Record]) -> None:
    """Write a moonfile, record by record; compressed when its name ends in `.gz`.

    It is written under another name and renamed when it is complete and on the disk. Raises ModelError when a
    record does not have the size that it says.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("wb") as raw:
            if out.name.endswith(".gz"):  # no name and no time inside: the same records give the same file
                with gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed:
                    _write(cast("BinaryIO", packed), records)
            else:
                _write(raw, records)
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: BinaryIO, records: Iterable[Record]) -> None:
    file.write(MAGIC + bytes([VERSION]))
    for record in records:
        name = record.name.encode()
        file.write(len(name).to_bytes(4, "big") + name + record.size.to_bytes(8, "big"))
        written = sum(file.write(chunk) for chunk in record.chunks)
        if written != record.size:
            raise ModelError(f"{record.name}: {record.size} bytes were announced, {written} came")
