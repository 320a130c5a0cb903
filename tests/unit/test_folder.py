"""The folder source without a process around it: what is found, what waits, what is asked, in which order."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from edge_daemon.decoders import PillowDecoder
from edge_daemon.messages import FileKey, Frame, Problem
from edge_daemon.picture import Limits, Picture
from edge_daemon.sources import folder as folder_module
from edge_daemon.sources.folder import FolderOptions, FolderSource, Settling
from edge_daemon.sources.folder_tree import Tree, Watch
from edge_daemon.sources.single import SingleOptions, SingleSource
from tests.hostile import encode, scene

JPEG = encode(scene(40, 30), "JPEG")
WAIT_S = 30.0
"""Deadline for things that take milliseconds."""


class Recorder:
    """A daemon that wants everything it has no record of, and remembers what it was told."""

    def __init__(self) -> None:
        self.offers: list[list[FileKey]] = []
        self.opened: list[str] = []
        self.unwanted: set[FileKey] = set()
        self.idles: list[str] = []
        self.when_idle: Callable[[], None] = lambda: None
        self.fresh = False

    def offer(self, files: list[FileKey], has_gone: Callable[[str], bool]) -> list[bool]:
        self.offers.append(files)
        self.has_gone = has_gone
        return [file not in self.unwanted for file in files]

    def opening(self, file: FileKey) -> None:
        self.opened.append(file.name)

    def idle(self, problem: str, late: str = "") -> None:
        self.idles.append(problem)
        self.when_idle()

    def alive(self) -> None:
        """A scan goes on."""


class Interrupter(Recorder):
    """A daemon under whose eyes something happens once, just before the first file is opened."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self.happens = happens

    def opening(self, file: FileKey) -> None:
        super().opening(file)
        if len(self.opened) == 1:
            self.happens()


OPTIONS = FolderOptions("", pattern=None, recursive=True, poll=False, settle_s=2.0, rescan_s=60.0)


class NothingLeft(Exception):
    """Raised to leave a source that waits for files."""


def old(path: Path, data: bytes = JPEG, age_s: float = 3600.0) -> Path:
    """A file that nobody writes any more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    stamp = time.time() - age_s
    os.utime(path, (stamp, stamp))
    return path


def source_of(path: Path, **options: object) -> FolderSource:
    chosen = replace(OPTIONS, path=str(path), **options)  # type: ignore[arg-type]
    return FolderSource(chosen, Limits(), PillowDecoder())


def drain(source: FolderSource, daemon: Recorder) -> list[Frame | Problem]:
    """Everything that comes before the source begins to wait."""

    def leave() -> None:
        raise NothingLeft

    daemon.when_idle = leave
    answers = []
    try:
        while True:
            answers.append(source.next(daemon))
    except NothingLeft:
        return answers
    finally:
        daemon.when_idle = lambda: None


def names(answers: list[Frame | Problem]) -> list[str]:
    return [answer.file.name for answer in answers if answer.file is not None]


@pytest.mark.parametrize(("settle_s", "looks"), [(0.0, 300), (2.0, 120), (600.0, 60)])
def test_how_often_a_minute_an_idle_folder_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle_s: float, looks: int
) -> None:
    slept_s: list[float] = []

    def sleep(duration_s: float) -> None:
        slept_s.append(duration_s)
        if sum(slept_s) > 59.99:
            raise NothingLeft

    monkeypatch.setattr(time, "sleep", sleep)
    daemon = Recorder()
    with pytest.raises(NothingLeft):
        source_of(tmp_path, settle_s=settle_s).next(daemon)
    assert len(daemon.idles) == looks


class Slow(Recorder):
    """A daemon on whose board each file takes a while to be looked at, by a clock that passes nowhere else."""

    def __init__(self, per_file_s: float) -> None:
        super().__init__()
        self.per_file_s, self.looked_at, self.now_s = per_file_s, 0, 0.0

    def alive(self) -> None:
        self.looked_at += 1
        self.now_s += self.per_file_s

    def sleep(self, _: float) -> None:
        self.now_s += 10.0  # more than it asks for, or the test would take a minute
        if self.now_s >= 3600:
            raise NothingLeft


@pytest.mark.parametrize(
    ("poll", "per_file_s", "scans"), [(False, 0.0, 60), (False, 0.1, 36), (False, 20.0, 1), (True, 0.1, 60)]
)
def test_how_often_an_hour_a_folder_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll: bool, per_file_s: float, scans: int
) -> None:
    for number in range(10):
        old(tmp_path / f"{number}.jpg")
    daemon, source = Slow(per_file_s), source_of(tmp_path, poll=poll)
    drain(source, daemon)
    daemon.looked_at = 0
    monkeypatch.setattr(time, "monotonic", lambda: daemon.now_s)
    monkeypatch.setattr(time, "sleep", daemon.sleep)
    source._next_scan_s = source._rest_until_s = 0.0
    with pytest.raises(NothingLeft):
        source.next(daemon)
    assert daemon.looked_at == pytest.approx(10 * scans, abs=10)


# ---- Settling --------------------------------------------------------------------------------------------


def key(name: str, mtime_s: float, size_bytes: int) -> FileKey:
    return FileKey(name, int(mtime_s * 1e9), size_bytes)


def test_an_old_file_is_complete_at_first_sight() -> None:
    assert Settling(2.0).complete(key("a", 100.0, 5), now_s=0.0, wall_s=102.0)


def test_a_young_file_is_complete_when_it_has_stood_still() -> None:
    settling = Settling(2.0)
    assert not settling.complete(key("a", 100.0, 5), now_s=10.0, wall_s=100.5)
    assert settling.due(11.9) == []
    assert settling.due(12.0) == ["a"]
    assert settling.complete(key("a", 100.0, 5), now_s=12.0, wall_s=102.5)
    assert settling.due(99.0) == []


def test_every_change_starts_the_wait_again() -> None:
    settling = Settling(2.0)
    for now_s, size in ((10.0, 5), (11.9, 6), (13.8, 7)):
        assert not settling.complete(key("a", 90.0 + now_s, size), now_s, wall_s=90.0 + now_s)
    assert not settling.complete(key("a", 103.8, 7), now_s=15.7, wall_s=105.7)
    assert settling.complete(key("a", 103.8, 7), now_s=15.8, wall_s=105.8)


def test_a_growing_file_whose_time_is_set_back_waits_all_the_same() -> None:
    """As `cp -p` does it at its end: the file was seen to change, so its old time proves nothing."""
    settling = Settling(2.0)
    assert not settling.complete(key("a", 100.0, 5), now_s=10.0, wall_s=100.0)
    assert not settling.complete(key("a", 50.0, 9), now_s=10.5, wall_s=100.5)
    assert settling.complete(key("a", 50.0, 9), now_s=12.5, wall_s=102.5)


def test_a_file_from_the_future_is_only_waited_for() -> None:
    """A camera without a clock, or this machine before its time was set."""
    settling = Settling(2.0)
    assert not settling.complete(key("a", 9_000.0, 5), now_s=10.0, wall_s=100.0)
    assert settling.complete(key("a", 9_000.0, 5), now_s=12.0, wall_s=102.0)


def test_without_a_wait_everything_is_complete() -> None:
    assert Settling(0.0).complete(key("a", 100.0, 5), now_s=0.0, wall_s=100.0)


# ---- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "b/c.png", "x.y.webp", "a.heic", "a.tiff", "a b.gif", "a.JPE"])
def test_pictures_are_admitted(name: str) -> None:
    assert Tree("/", None, recursive=True).admits(name)


@pytest.mark.parametrize(
    "name", [".a.jpg", "a.jpg.part", "a.jpg.tmp", "a.jpg.crdownload", "a.jpg~", "a.txt", "jpg", "b/.a.jpg"]
)
def test_hidden_and_temporary_names_are_not(name: str) -> None:
    assert not Tree("/", None, recursive=True).admits(name)


def test_patterns() -> None:
    by_name = Tree("/", "cam*.jpg", recursive=True)
    assert by_name.admits("deep/er/cam1.jpg")
    assert not by_name.admits("deep/er/dog1.jpg")
    by_path = Tree("/", "door/*.jpg", recursive=True)
    assert by_path.admits("door/2026/x.jpg")
    assert not by_path.admits("garden/x.jpg")
    assert not Tree("/", "*", recursive=True).admits("notes.txt")


# ---- the source ------------------------------------------------------------------------------------------


def test_the_oldest_comes_first_then_the_name_decides(tmp_path: Path) -> None:
    for name, age_s in (("new.jpg", 10.0), ("sub/old.jpg", 900.0), ("b.jpg", 100.0), ("a.jpg", 100.0)):
        old(tmp_path / name, age_s=age_s)
    stamp = time.time() - 100.0
    for name in ("a.jpg", "b.jpg"):
        os.utime(tmp_path / name, (stamp, stamp))
    answers = drain(source_of(tmp_path), daemon := Recorder())
    assert names(answers) == ["sub/old.jpg", "a.jpg", "b.jpg", "new.jpg"] == daemon.opened
    first = answers[0]
    assert isinstance(first, Frame)
    assert first.captured_at_s == pytest.approx((tmp_path / "sub/old.jpg").stat().st_mtime)
    assert (first.width_px, first.height_px, len(first.payload)) == (40, 30, 40 * 30 * 3)
    assert len(bytes.fromhex(first.thumbnail_hex)) == 32 * 32


def test_what_was_dealt_with_is_not_opened_and_asked_about_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_SCAN_SHARE", 0)  # rescan whenever there is nothing else to do
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        old(tmp_path / name)
    source, daemon = source_of(tmp_path, rescan_s=0.0), Recorder()
    known = Tree(str(tmp_path), None, recursive=True).key("b.jpg")
    assert known is not None
    daemon.unwanted = {known}
    assert sorted(names(drain(source, daemon))) == ["a.jpg", "c.jpg"]
    for _ in range(3):  # each of these rescans
        assert drain(source, daemon) == []
    assert sum(len(offer) for offer in daemon.offers) == 3


def test_a_changed_file_is_another_file(tmp_path: Path) -> None:
    path = old(tmp_path / "a.jpg")
    source, daemon = source_of(tmp_path, rescan_s=0.0), Recorder()
    assert len(drain(source, daemon)) == 1
    old(path, encode(scene(20, 10), "JPEG"), age_s=50.0)
    again = drain(source, daemon)
    assert names(again) == ["a.jpg"]
    assert isinstance(again[0], Frame)
    assert again[0].width_px == 20


def test_flat_folders_and_links_and_hidden_folders(tmp_path: Path) -> None:
    outside = old(tmp_path / "outside" / "x.jpg").parent
    root = tmp_path / "root"
    old(root / "a.jpg")
    old(root / "sub" / "b.jpg")
    old(root / ".thumbnails" / "c.jpg")
    (root / "linked").symlink_to(outside)
    (root / "self").symlink_to(root)
    (root / "d.jpg").symlink_to(outside / "x.jpg")
    assert sorted(names(drain(source_of(root), Recorder()))) == ["a.jpg", "d.jpg", "sub/b.jpg"]
    assert sorted(names(drain(source_of(root, recursive=False), Recorder()))) == ["a.jpg", "d.jpg"]


def test_offers_are_small_enough_for_a_message(tmp_path: Path) -> None:
    for number in range(1203):
        old(tmp_path / f"{number}.jpg")
    long = tmp_path / "/".join(["ü" * 120] * 8)
    for number in range(100):
        old(long / f"{number}.jpg")
    daemon = Recorder()
    daemon.unwanted = AnyKey()
    assert drain(source_of(tmp_path), daemon) == []
    assert sum(len(offer) for offer in daemon.offers) == 1303
    assert max(len(offer) for offer in daemon.offers) == folder_module.MAX_OFFER
    assert max(sum(len(file.name) for file in offer) for offer in daemon.offers) * 12 < 1 << 20


class AnyKey(set[FileKey]):
    """All files there are."""

    def __contains__(self, item: object) -> bool:
        return True


def test_more_files_than_may_wait_are_all_delivered_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "MAX_WAITING", 10)
    for number in range(95):
        old(tmp_path / f"{number:02}.jpg", age_s=10_000.0 - number)
    delivered = names(drain_all(source_of(tmp_path), Recorder(), 95))
    assert delivered == [f"{number:02}.jpg" for number in range(95)]


def drain_all(source: FolderSource, daemon: Recorder, count: int) -> list[Frame | Problem]:
    """So many answers, waiting for them where necessary."""
    deadline_s = time.monotonic() + WAIT_S

    def check() -> None:
        assert time.monotonic() < deadline_s, f"only {len(answers)} of {count} came: {names(answers)}"

    daemon.when_idle = check
    answers: list[Frame | Problem] = []
    while len(answers) < count:
        answers.append(source.next(daemon))
    return answers


class Meddler(PillowDecoder):
    """A real decoder; the file changes under its hands."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        super().__init__()
        self.meddle = meddle

    def decode(self, data: bytes, kind: str, limits: Limits) -> Picture:
        self.meddle()
        return super().decode(data, kind, limits)


def test_a_file_that_is_replaced_before_it_is_read_waits_and_comes_as_what_it_is_then(tmp_path: Path) -> None:
    path = old(tmp_path / "a.jpg")
    replacement = old(tmp_path / "next", encode(scene(20, 10), "JPEG"), age_s=50.0)
    daemon = Interrupter(lambda: os.rename(replacement, path))
    answers = drain(source_of(tmp_path), daemon)
    assert daemon.opened == ["a.jpg", "a.jpg"]
    assert len(answers) == 1
    assert isinstance(answers[0], Frame)
    assert answers[0].width_px == 20


def test_a_file_that_is_deleted_while_it_is_decoded_is_delivered(tmp_path: Path) -> None:
    path = old(tmp_path / "a.jpg")
    source = FolderSource(replace(OPTIONS, path=str(tmp_path)), Limits(), Meddler(path.unlink))
    assert isinstance(source.next(Recorder()), Frame)


def test_a_file_that_is_deleted_before_it_is_opened_is_a_problem(tmp_path: Path) -> None:
    path = old(tmp_path / "a.jpg")
    daemon = Interrupter(path.unlink)
    answer = source_of(tmp_path).next(daemon)
    assert isinstance(answer, Problem)
    assert answer.file is not None
    assert "deleted, moved or renamed" in answer.reason


def test_a_folder_that_goes_with_its_files_makes_one_problem_not_one_a_file(tmp_path: Path) -> None:
    root = tmp_path / "stick"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        old(root / name)
    away = tmp_path / "away"
    source = source_of(root)
    daemon: Recorder = Interrupter(lambda: os.rename(root, away))
    answer = source.next(daemon)
    assert answer == Problem(f"the folder {str(root)!r} cannot be watched: No such file or directory", None)
    assert drain(source, daemon) == []
    assert daemon.idles[-1] == answer.reason
    assert len(daemon.opened) == 1
    away.rename(root)
    daemon = Recorder()
    assert sorted(names(drain_all(source, daemon, 3))) == ["a.jpg", "b.jpg", "c.jpg"]
    assert drain(source, daemon) == []
    assert daemon.idles[-1] == ""


def test_a_folder_with_the_name_of_a_picture_is_told_of_once_and_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_SCAN_SHARE", 0)
    source, daemon = source_of(tmp_path, rescan_s=0.0), Recorder()
    old(tmp_path / "x.jpg" / "a.jpg")
    assert sorted(names(drain(source, daemon))) == ["x.jpg", "x.jpg/a.jpg"]
    old(tmp_path / "x.jpg" / "b.jpg")  # which changes the time of the folder
    assert names(drain(source, daemon)) == ["x.jpg/b.jpg"]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a bad block: it can be opened, and breaks off while it is listed."""
    sick, scandir = tmp_path / "sick", os.scandir

    class Broken(ExitStack):
        def __init__(self, path: str) -> None:
            super().__init__()
            self._path, self._listing = path, self.enter_context(scandir(path))

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            yield from self._listing
            if self._path == str(sick):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    old(sick / "a.jpg")
    monkeypatch.setattr(os, "scandir", Broken)
    return sick


def test_a_folder_that_breaks_off_while_it_is_listed_is_told_of_and_stops_no_other(failing: Path) -> None:
    old(failing.parent / "well" / "b.jpg")
    answers = drain(source_of(failing.parent, rescan_s=1000.0), Recorder())
    assert sorted(names(answers)) == ["sick", "sick/a.jpg", "well/b.jpg"]
    (problem,) = (answer for answer in answers if isinstance(answer, Problem))
    assert problem.reason == "it cannot be read: Input/output error"


def test_a_watched_folder_that_breaks_off_has_its_rest_between_two_scans(
    failing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_SCAN_SHARE", 1_000_000)
    source, daemon = source_of(failing, rescan_s=1.0), Recorder()
    (problem,) = drain(source, daemon)
    assert isinstance(problem, Problem)
    assert problem.reason.endswith("cannot be watched: Input/output error")
    rests_until_s = source._rest_until_s
    assert drain(source, daemon) == []
    assert source._rest_until_s == rests_until_s, "it was not listed again"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    old(tmp_path / "a.jpg")
    answer = source_of(tmp_path / "a.jpg").next(Recorder())
    assert isinstance(answer, Problem)
    assert "Not a directory" in answer.reason


# ---- inotify ---------------------------------------------------------------------------------------------


@pytest.fixture
def watching(tmp_path: Path) -> tuple[FolderSource, Recorder, Path]:
    """A source that has seen its folder, and will not look through all of it again within this test."""
    root = tmp_path / "in"
    root.mkdir()
    source, daemon = source_of(root, rescan_s=100_000.0), Recorder()
    assert drain(source, daemon) == []
    return source, daemon, root


def test_new_files_are_seen(watching: tuple[FolderSource, Recorder, Path], tmp_path: Path) -> None:
    source, daemon, root = watching
    old(root / "a.jpg")
    old(tmp_path / "b.jpg").rename(root / "b.jpg")
    assert sorted(names(drain_all(source, daemon, 2))) == ["a.jpg", "b.jpg"]


def test_files_in_new_and_moved_folders_are_seen(watching: tuple[FolderSource, Recorder, Path], tmp_path: Path) -> None:
    source, daemon, root = watching
    old(root / "new" / "er" / "a.jpg")
    old(tmp_path / "elsewhere" / "deep" / "b.jpg")
    (tmp_path / "elsewhere").rename(root / "moved")
    assert sorted(names(drain_all(source, daemon, 2))) == ["moved/deep/b.jpg", "new/er/a.jpg"]
    old(root / "moved" / "deep" / "c.jpg")  # the new folders are watched themselves
    old(root / "new" / "er" / "d.jpg")
    assert sorted(names(drain_all(source, daemon, 2))) == ["moved/deep/c.jpg", "new/er/d.jpg"]


def test_a_folder_that_comes_again_is_watched_again(watching: tuple[FolderSource, Recorder, Path]) -> None:
    source, daemon, root = watching
    for round_ in range(3):
        old(root / "day" / f"{round_}.jpg")
        assert names(drain_all(source, daemon, 1)) == [f"day/{round_}.jpg"]
        old(root / "day" / f"{round_}-late.jpg")
        assert names(drain_all(source, daemon, 1)) == [f"day/{round_}-late.jpg"]
        for path in (root / "day").iterdir():
            path.unlink()
        (root / "day").rmdir()


def test_a_name_that_is_not_utf8_is_seen(watching: tuple[FolderSource, Recorder, Path]) -> None:
    source, daemon, root = watching
    name = os.fsdecode(b"caf\xe9.jpg")
    old(root / name)
    assert names(drain_all(source, daemon, 1)) == [name]


def test_a_link_to_a_large_folder_is_not_watched(watching: tuple[FolderSource, Recorder, Path]) -> None:
    source, daemon, root = watching
    (root / "everything").symlink_to("/usr")
    old(root / "a.jpg")
    assert names(drain_all(source, daemon, 1)) == ["a.jpg"]
    assert inotify_watches() < 100


def inotify_watches() -> int:
    """How many folders this process watches."""
    total = 0
    for path in Path("/proc/self/fdinfo").iterdir():
        try:
            total += sum(line.startswith("inotify wd:") for line in path.read_text(encoding="ascii").splitlines())
        except OSError:  # the descriptor that read the list
            continue
    return total


def test_polling_needs_no_inotify(tmp_path: Path) -> None:
    before = inotify_watches()
    source, daemon = source_of(tmp_path, poll=True, rescan_s=0.2), Recorder()
    assert drain(source, daemon) == []
    assert inotify_watches() <= before
    old(tmp_path / "deep" / "a.jpg")
    assert names(drain_all(source, daemon, 1)) == ["deep/a.jpg"]


def test_a_watch_tells_of_what_happened_since_it_was_added(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path), enabled=True)
    watch.add([""])
    old(tmp_path / "a.jpg")
    (tmp_path / "sub").mkdir()
    watch.add(["", "sub"])  # a new watch takes over; what the former one saw is not lost
    old(tmp_path / "sub" / "b.jpg")
    seen: set[str] = set()
    deadline_s = time.monotonic() + WAIT_S
    while not seen >= {"a.jpg", "sub", "sub/b.jpg"}:
        assert time.monotonic() < deadline_s, seen
        seen |= watch.changed() or set()
    watch.clear()
    assert watch.changed() == set()


# ---- a single picture


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    old(tmp_path / "a.jpg")
    source = SingleSource(SingleOptions(str(tmp_path)), Limits(), PillowDecoder())
    assert isinstance(source.next(Recorder()), Frame)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        problem = source.next(Recorder())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert problem == Problem(f"the folder {str(tmp_path)!r} cannot be read: Too many open files", None)


def test_what_has_gone_has_gone_and_what_cannot_be_seen_has_not(tmp_path: Path) -> None:
    """The daemon forgets files of which this is said; what is away with its folder or disk is no such file."""
    root, away = tmp_path / "inbox", tmp_path / "away"
    for name in ("there.jpg", "below/there.jpg", "deleted.jpg", "emptied/deleted.jpg"):
        old(root / name)
    os.symlink("nowhere.jpg", root / "broken-link.jpg")
    source, daemon = source_of(root), Recorder()
    drain(source, daemon)
    (root / "deleted.jpg").unlink()
    (root / "emptied/deleted.jpg").unlink()
    asked = ("there.jpg", "below/there.jpg", "broken-link.jpg", "deleted.jpg", "emptied/deleted.jpg", "no/such.jpg")
    assert [daemon.has_gone(name) for name in asked] == [False, False, False, True, True, True]
    root.rename(away)
    assert not any(daemon.has_gone(name) for name in asked)
    root.mkdir()
    assert not any(daemon.has_gone(name) for name in asked), "another folder in its place"
