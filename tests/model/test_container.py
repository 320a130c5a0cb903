"""Moonfiles are read and written as a stream, and whatever is wrong with one is refused by name."""

from __future__ import annotations

import gc
import gzip
import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_daemon.errors import ModelError
from edge_daemon.models.container import (
    CHUNK_BYTES,
    MOST_RECORD_BYTES,
    MOST_RECORDS,
    REQUIRED,
    Digest,
    Moonfile,
    Record,
    write_records,
)
from tests.model.moonfiles import digest_of, read_records

CONTENTS = {name: name.encode() * (index % 3) for index, name in enumerate(REQUIRED)}
"""Of a complete moonfile; some records are empty."""
HEADER = b"MOON\x01"


def one(name: bytes | str, content: bytes = b"", size: int | None = None) -> bytes:
    """A record as bytes, which may lie about its size."""
    raw = name if isinstance(name, bytes) else name.encode()
    announced = len(content) if size is None else size
    return len(raw).to_bytes(4, "big") + raw + announced.to_bytes(8, "big") + content


def whole(contents: dict[str, bytes]) -> bytes:
    return HEADER + b"".join(one(name, content) for name, content in contents.items())


PLAIN = whole(CONTENTS)
Packing = Callable[[bytes], bytes]
PACKINGS: tuple[Packing, ...] = (bytes, lambda plain: gzip.compress(plain, mtime=0))
each_packing = pytest.mark.parametrize("packing", PACKINGS, ids=("plain", "gzip"))


def read(path: Path) -> dict[str, bytes]:
    return {record.name: record.read() for record in read_records(path)}


def refused(tmp_path: Path, data: bytes) -> str:
    """The words in which a file is refused; it is always named."""
    path = tmp_path / "some.mf"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def record(name: str, content: bytes) -> Record:
    return Record(name, len(content), iter([content]))


# ---- what is right --------------------------------------------------------------------------------------


@each_packing
def test_it_is_read_by_its_first_bytes_whatever_its_name(tmp_path: Path, packing: Packing) -> None:
    for name in ("a.mf", "b.mf.gz", "c"):
        path = tmp_path / name
        path.write_bytes(packing(PLAIN))
        assert read(path) == CONTENTS


@each_packing
def test_the_digest_is_that_of_the_unpacked_file(tmp_path: Path, packing: Packing) -> None:
    path = tmp_path / "a.mf"
    path.write_bytes(packing(PLAIN))
    assert digest_of(path) == Digest(hashlib.sha256(PLAIN).hexdigest(), len(PLAIN))
    with Moonfile(path) as moonfile:
        records = moonfile.records()
        next(records)
        with pytest.raises(ValueError, match="behind the last record"):
            moonfile.digest()
        list(records)
        assert moonfile.digest() == digest_of(path)


def test_records_may_be_skipped_or_left_half_read(tmp_path: Path) -> None:
    contents = CONTENTS | {"vision_encoder.onnx": bytes(2 * CHUNK_BYTES + 1), "text_decoder.onnx": b"the last"}
    path = tmp_path / "a.mf"
    path.write_bytes(whole(contents))
    for found in read_records(path):
        if found.name == "vision_encoder.onnx":
            assert len(next(found.chunks)) == CHUNK_BYTES
        if found.name == "text_decoder.onnx":
            assert found.read() == b"the last"
    assert digest_of(path).size == path.stat().st_size


def test_a_record_is_copied_and_hashed(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 17)
    path = tmp_path / "a.mf"
    path.write_bytes(gzip.compress(whole(CONTENTS | {"text_decoder.onnx": content}), 1))
    hashes = {found.name: found.copy(tmp_path / found.name) for found in read_records(path)}
    assert (tmp_path / "text_decoder.onnx").read_bytes() == content
    assert hashes["text_decoder.onnx"] == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "config.json").read_bytes() == CONTENTS["config.json"]


def test_a_leading_directory_is_dropped_as_the_client_does(tmp_path: Path) -> None:
    path = tmp_path / "a.mf"
    path.write_bytes(HEADER + b"".join(one(f"some/place/{name}", content) for name, content in CONTENTS.items()))
    assert read(path) == CONTENTS


def test_records_that_nobody_needs_are_given_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.mf"
    path.write_bytes(PLAIN + one("LICENSE", b"Apache-2.0"))
    assert read(path) == CONTENTS | {"LICENSE": b"Apache-2.0"}


# ---- what is refused ------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.mf: No such file"):
        Moonfile(tmp_path / "nowhere.mf")


@each_packing
def test_other_magic_bytes(tmp_path: Path, packing: Packing) -> None:
    assert "begins with b'PK\\x03\\x04'" in refused(tmp_path, packing(b"PK\x03\x04" + PLAIN))


@each_packing
def test_another_version(tmp_path: Path, packing: Packing) -> None:
    words = refused(tmp_path, packing(b"MOON\x02" + PLAIN[5:]))
    assert "version 2, only version 1 is known (at byte 4" in words


@each_packing
def test_every_cut_is_noticed(tmp_path: Path, packing: Packing) -> None:
    data = packing(PLAIN)
    for length in range(len(data)):
        refused(tmp_path, data[:length])


def test_a_cut_says_where(tmp_path: Path) -> None:
    begin = HEADER + one("config.json", b"{}")
    at = len(begin)
    wanted = {
        begin: "missing tokenizer.json, initial_kv_cache.npy, vision_encoder.onnx",
        begin + b"\0\0": f"the file ends within a record behind 1 records (at byte {at + 2} ",
        begin + b"\0\0\0\x09token": f"the file ends within the name of a record behind 1 records (at byte {at + 9} ",
        begin + one("x", b"")[:-3]: f"the file ends within the length of record x (at byte {at + 10} ",
        begin + one("x", b"abc")[:-1]: f"record x says it has 3 bytes, the file ends 2 bytes on (at byte {at + 13} ",
    }
    for data, words in wanted.items():
        assert words in refused(tmp_path, data)
    packed = refused(tmp_path, gzip.compress(begin + one("x", b"abc")[:-1]))
    assert f"record x says it has 3 bytes, 1 of them are missing (at byte {at + 15} " in packed


def test_every_flipped_bit_of_a_packed_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A plain file has no checksums, so its content is the catalogue's hash's matter; gzip has one."""
    data = gzip.compress(PLAIN, mtime=0)
    path, noticed = tmp_path / "a.mf", 0
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert read(path) == CONTENTS
        except ModelError:
            noticed += 1
    assert noticed >= len(data) - 8  # gzip's header has 8 bytes that matter to nobody: flags, time, system


@each_packing
def test_bytes_behind_the_end(tmp_path: Path, packing: Packing) -> None:
    refused(tmp_path, packing(PLAIN) + b"more")


@pytest.mark.parametrize(
    "name",
    ["../config.json", "a/../../config.json", "/etc/passwd", "a//b", "a/", ".", "..", "a\\b", "C:\\b", "a\0b", "a\nb"],
)
def test_names_that_lead_somewhere_else(tmp_path: Path, name: str) -> None:
    words = refused(tmp_path, PLAIN + one(name, b"x"))
    assert f"a record is named {name!r}; a plain file name is right (at byte {len(PLAIN)} " in words


def test_names_that_are_none(tmp_path: Path) -> None:
    assert "a name of 0 bytes; 1 to 4096 are right" in refused(tmp_path, PLAIN + one(""))
    assert "a name of 4097 bytes" in refused(tmp_path, PLAIN + one("x" * 4097))
    assert "a name of 4294967295 bytes" in refused(tmp_path, PLAIN + b"\xff" * 64)
    assert "is not UTF-8: b'\\xff.json'" in refused(tmp_path, PLAIN + one(b"\xff.json"))


@pytest.mark.parametrize("again", ["config.json", "elsewhere/config.json"])
def test_a_record_that_comes_twice(tmp_path: Path, again: str) -> None:
    assert "record config.json comes twice" in refused(tmp_path, PLAIN + one(again, b"other"))


@pytest.mark.parametrize("name", REQUIRED)
def test_a_record_that_is_missing(tmp_path: Path, name: str) -> None:
    words = refused(tmp_path, whole({other: content for other, content in CONTENTS.items() if other != name}))
    assert f"missing {name}; it has " in words


@each_packing
def test_a_record_that_is_too_large(tmp_path: Path, packing: Packing) -> None:
    words = refused(tmp_path, packing(PLAIN + one("bomb", b"x", MOST_RECORD_BYTES + 1)))
    assert f"record bomb says it has {MOST_RECORD_BYTES + 1} bytes; {MOST_RECORD_BYTES} are allowed" in words


@each_packing
def test_too_many_records(tmp_path: Path, packing: Packing) -> None:
    more = b"".join(one(f"more{index}") for index in range(MOST_RECORDS))
    assert f"more than {MOST_RECORDS} records" in refused(tmp_path, packing(PLAIN + more))


def test_memory_is_bounded_however_much_is_packed(tmp_path: Path) -> None:
    path, size = tmp_path / "a.mf", 64 << 20
    with gzip.open(path, "wb", 1) as packed:
        packed.write(PLAIN + one("zeros", b"", size))
        for _ in range(size >> 20):
            packed.write(bytes(1 << 20))
    assert path.stat().st_size < size / 50
    tracemalloc.start()
    try:
        assert digest_of(path).size == len(PLAIN) + len(one("zeros")) + size
        assert tracemalloc.get_traced_memory()[1] < 16 * CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "a.mf"
    gc.collect()  # of what tests before this one left open
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"", b"MOON\x09", PLAIN[:30], PLAIN, gzip.compress(PLAIN)[:40]):
        path.write_bytes(data)
        with suppress(ModelError):
            digest_of(path)
    assert len(os.listdir("/proc/self/fd")) <= before


# ---- writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.mf", "out.mf.gz"])
def test_what_is_written_can_be_read(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    write_records(out, (record(*item) for item in CONTENTS.items()))
    assert read(out) == CONTENTS
    data = out.read_bytes()
    assert (gzip.decompress(data) if name.endswith(".gz") else data) == PLAIN
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_records_give_the_same_packed_file(tmp_path: Path) -> None:
    for name in ("one.mf.gz", "two.mf.gz"):
        write_records(tmp_path / name, (record(*item) for item in CONTENTS.items()))
    assert (tmp_path / "one.mf.gz").read_bytes() == (tmp_path / "two.mf.gz").read_bytes()


@pytest.mark.parametrize("name", ["out.mf", "out.mf.gz"])
def test_a_file_that_is_not_complete_is_not_there(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_bytes(b"what was there before")

    def broken() -> Iterator[bytes]:
        yield b"abc"
        assert out.read_bytes() == b"what was there before"
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        write_records(out, [record("config.json", b"{}"), Record("x", 6, broken())])
    with pytest.raises(ModelError, match="x: 7 bytes were announced, 3 came"):
        write_records(out, [Record("x", 7, iter([b"abc"]))])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert out.read_bytes() == b"what was there before"
