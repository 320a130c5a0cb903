"""Pictures that appear in a folder: found, waited for until they are complete, offered, read, oldest first.

What was dealt with in earlier lives is known to the daemon, so every file is offered to it once and forgotten when
it is not wanted. Memory is bounded: MAX_WAITING files wait at most (the rest is found again when they are done),
and of the files that need no further look a 64-bit hash is kept, about 65 bytes a file.
It knows nothing of pipes, and of pictures only that a decoder turns bytes into one.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from edge_daemon import picture
from edge_daemon.errors import PictureError
from edge_daemon.messages import FileKey, Frame, Problem
from edge_daemon.picture import Decoder, Limits
from edge_daemon.sources import Daemon
from edge_daemon.sources.folder_tree import Tree, Watch
from edge_daemon.sources.frames import frame_of
from edge_daemon.wire import MAX_HEADER_BYTES

MAX_WAITING = 10_000
"""Files that are remembered as wanted or as unfinished."""
MAX_OFFER = 500
_OFFER_CHARACTERS = MAX_HEADER_BYTES // 2 // 12
"""Characters in the names of one offer: JSON escapes take up to 12 bytes a character."""
_TICK_S, _LONGEST_TICK_S = 0.2, 1.0
"""How often the folder is looked at while there is nothing to do: four times while a file settles, within these."""
_SCAN_SHARE = 10
"""A rescan that took t seconds is not repeated before 10 t: at most a tenth of the time goes into rescans."""
_CALM_SHARE, _CALM_SCAN_S = 100, 3600.0
"""Where the kernel tells of changes a hundredth has to do, so that 100 000 pictures cost a board next to nothing; but
at least once an hour."""


@dataclass(frozen=True)
class FolderOptions:
    """Which folder, which files in it, and when they are complete."""

    path: str
    pattern: str | None
    """Shell pattern for file names, or for paths below the folder when it has a slash in it; None takes all."""
    recursive: bool
    poll: bool
    """Do without inotify, for network mounts, where the kernel learns nothing of what others write."""
    settle_s: float
    """A file is complete when its size and time have stood still for so long."""
    rescan_s: float
    """How often everything is looked through, for what inotify missed."""


class Settling:
    """Files that may still be being written. Pure: the clocks are passed in."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[str, tuple[FileKey, float]] = {}

    def full_for(self, key: FileKey) -> bool:
        """Whether this file would be one too many."""
        return len(self._since) >= MAX_WAITING and key.name not in self._since

    def complete(self, key: FileKey, now_s: float, wall_s: float) -> bool:
        """Whether a file that was just seen may be taken now; if not, it is remembered and becomes due.

        `now_s` is monotonic; `wall_s` is Unix time, only for the age of a file that was never seen before.
        """
        before = self._since.get(key.name)
        if before is None:
            done = wall_s - key.mtime_ns / 1e9 >= self._settle_s
        else:
            done = before[0] == key and now_s - before[1] >= self._settle_s
        if done:
            self._since.pop(key.name, None)
        elif before is None or before[0] != key:
            self._since[key.name] = (key, now_s)
        return done

    def due(self, now_s: float) -> list[str]:
        """Names that were last seen to change `settle_s` ago: look at them again."""
        return [name for name, (_, since_s) in self._since.items() if now_s - since_s >= self._settle_s]

    def forget(self, name: str) -> None:
        """The file has gone."""
        self._since.pop(name, None)

    def clear(self) -> None:
        """All files have gone."""
        self._since.clear()


class FolderSource:
    """A watched folder as a source of pictures."""

    def __init__(self, options: FolderOptions, limits: Limits, decoder: Decoder) -> None:
        """Nothing is touched yet; the folder need not exist."""
        self.decoder = decoder.name
        self._options = options
        self._limits = limits
        self._decoder = decoder
        self._tree = Tree(options.path, options.pattern, options.recursive)
        self._watch = Watch(options.path, enabled=not options.poll)
        self._settling = Settling(options.settle_s)
        self._tick_s = min(max(_TICK_S, options.settle_s / 4), _LONGEST_TICK_S)
        self._complete: list[FileKey] = []  # to be offered
        self._waiting: dict[str, FileKey] = {}  # wanted
        self._handled: set[int] = set()  # hashes of keys that were delivered, or not wanted
        self._stale: set[int] = set()  # during a rescan: what was handled before it, still to be seen again
        self._identity: tuple[int, int] | None = None
        self._overflow = False
        self._next_scan_s = -math.inf
        self._rest_until_s = -math.inf
        self._problem = ""
        self._reported = ""

    def next(self, daemon: Daemon) -> Frame | Problem:
        """Wait for the next picture or the next reason why there is none."""
        while True:
            self._look(daemon)
            news, self._reported = self._problem != self._reported, self._problem
            if news and self._problem:
                return Problem(self._problem, None)
            if self._waiting:
                answer = self._read(min(self._waiting.values(), key=_age), daemon)
                if answer is not None:
                    return answer
            else:
                daemon.idle(self._problem, self._watch.problem)
                time.sleep(self._tick_s)

    def _look(self, daemon: Daemon) -> None:
        """See what is new, and ask the daemon which of it is wanted."""
        try:
            identity = self._tree.identity()
            if identity != self._identity:
                self._lose()
                self._identity, self._rest_until_s = identity, -math.inf
            if not self._waiting and self._scan_is_due(time.monotonic()):
                self._scan(daemon)
            changed = self._watch.changed()
            if changed is None:
                self._overflow = True
            for name in changed or ():
                self._changed(name, daemon)
            for name in self._settling.due(time.monotonic()):
                self._meet_again(name)
        except OSError as error:
            self._lose()
            self._problem = f"the folder {self._options.path!r} cannot be watched: {error.strerror}"
            return
        self._problem = ""
        self._ask(daemon)

    def _lose(self) -> None:
        """The folder went, or another one took its place: what waited in it is found again when it returns."""
        self._watch.clear()
        self._settling.clear()
        self._complete.clear()
        self._waiting.clear()
        self._next_scan_s = -math.inf

    def _scan(self, daemon: Daemon) -> None:
        """Look through everything, and forget handled files that are no longer there. Raises OSError."""
        started_s = time.monotonic()
        self._overflow = False
        if self._watch.problem:  # perhaps more is allowed by now
            self._watch.clear()
        self._stale, self._handled = self._handled, set()
        try:
            self._explore([""], daemon)
            self._stale = set()
        finally:
            self._handled |= self._stale  # empty unless the folder went meanwhile
            self._stale = set()
            ended_s = time.monotonic()
            took_s = ended_s - started_s
            self._rest_until_s = ended_s + _SCAN_SHARE * took_s
        told_of = not self._options.poll and not self._watch.problem
        calm_s = min(_CALM_SHARE * took_s, _CALM_SCAN_S) if told_of else 0.0
        self._next_scan_s = ended_s + max(self._options.rescan_s, calm_s)

    def _scan_is_due(self, now_s: float) -> bool:
        """When it is time, or when files are known to have been left out; never without a rest."""
        return now_s >= self._rest_until_s and (self._overflow or now_s >= self._next_scan_s)

    def _explore(self, folders: list[str], daemon: Daemon) -> None:
        """Meet every file in these folders and below them, level by level. Raises OSError."""
        while folders:
            self._watch.add(folders)  # first watch, then look: nothing falls in between
            below: list[str] = []
            for folder in folders:
                for key in self._tree.entries(folder, below):
                    self._meet(key)
                    if len(self._complete) >= MAX_OFFER:
                        self._ask(daemon)
                    daemon.alive()
            folders = below

    def _changed(self, name: str, daemon: Daemon) -> None:
        """Something happened to this name. Raises OSError."""
        self._watch.drop(name)  # if it was a folder, it may be another one now
        if not name or self._tree.is_folder(name):
            self._explore([name], daemon)
        if name and self._tree.admits(name):
            self._meet_again(name)

    def _meet_again(self, name: str) -> None:
        """Look at a file that was heard of."""
        key = self._tree.key(name)
        if key is None:
            self._settling.forget(name)
        else:
            self._meet(key)

    def _meet(self, key: FileKey) -> None:
        """A file as it is now: new, unfinished, complete, or known."""
        mark = hash(key)
        if mark in self._stale:
            self._handled.add(mark)
        if mark in self._handled or self._waiting.get(key.name) == key:
            return
        self._waiting.pop(key.name, None)  # it has changed since
        if self._settling.full_for(key):
            self._overflow = True
        elif self._settling.complete(key, time.monotonic(), time.time()):
            self._complete.append(key)

    def _ask(self, daemon: Daemon) -> None:
        """Offer complete files; those that are wanted wait for their turn."""
        for batch in _batches(self._complete):
            for key, wanted in zip(batch, daemon.offer(batch, self._has_gone), strict=True):
                if wanted:
                    self._waiting[key.name] = key
                else:
                    self._handled.add(hash(key))
        self._complete.clear()
        if len(self._waiting) > 2 * MAX_WAITING:
            oldest = heapq.nsmallest(MAX_WAITING, self._waiting.values(), key=_age)
            self._waiting = {key.name: key for key in oldest}
            self._overflow = True

    def _has_gone(self, name: str) -> bool:
        """Whether a file is no longer there, while the folder is: what is on a disk that was taken out has not gone."""
        try:
            return self._tree.key(name) is None and self._tree.identity() == self._identity
        except OSError:
            return False

    def _read(self, key: FileKey, daemon: Daemon) -> Frame | Problem | None:
        """Deliver a file, or say why not; None when it is another file by now and has to wait again."""
        del self._waiting[key.name]
        daemon.opening(key)
        started_s = time.perf_counter()
        try:
            data = picture.read_file(self._tree.path(key.name), self._limits)
            problem = None
        except PictureError as error:
            data, problem = b"", str(error)
        if self._is_another(key):
            return None
        self._handled.add(hash(key))
        if problem is None:
            try:
                loaded = picture.decode(data, self._decoder, self._limits)
                return frame_of(key, key.mtime_ns / 1e9, loaded, (time.perf_counter() - started_s) * 1e3)
            except PictureError as error:
                problem = str(error)
        return Problem(problem, key)

    def _is_another(self, key: FileKey) -> bool:
        """Whether what was just read is not the file that was offered, or went together with its folder.

        A file whose time and size are the same after it was read was not written to meanwhile. One that was
        deleted meanwhile was read all the same.
        """
        try:
            if self._tree.identity() != self._identity:
                return True
        except OSError:
            return True
        now = self._tree.key(key.name)
        if now is None or now == key:
            return False
        self._meet(now)
        return True


def _age(key: FileKey) -> tuple[int, str]:
    return key.mtime_ns, key.name


def _batches(keys: list[FileKey]) -> Iterator[list[FileKey]]:
    """Offers that are small enough for a message."""
    batch: list[FileKey] = []
    characters = 0
    for key in keys:
        if batch and (len(batch) == MAX_OFFER or characters + len(key.name) > _OFFER_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(key)
        characters += len(key.name)
    if batch:
        yield batch
