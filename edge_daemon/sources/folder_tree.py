"""What lies in a watched folder, and what changes there: file names and keys, listing, inotify.

Names are paths relative to the folder, in the file system's own encoding (surrogates stand for bytes that are
not UTF-8). Folders are never followed through symbolic links, files are; hidden files and folders do not count.
It knows nothing of pictures but their suffixes, and nothing of what has been delivered.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Generator, Iterable, Iterator
from fnmatch import translate

from watchfiles import Change, watch

from edge_daemon.messages import FileKey

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif")
)
"""Only these are looked at, so `x.jpg.part`, `x.jpg.tmp`, `x.jpg.crdownload` and `x.jpg~` wait for their renaming."""

_FORMER_S = 1.0
"""How long a watch that was replaced is still listened to: events reach watchfiles through a thread."""
_MAX_FORMER = 8
"""More of them are not kept: the kernel allows 128 a user by default."""

_TRIES = 10
"""Folders may come and go while they begin to be watched."""

Changes = Generator[set[tuple[Change, str]], None, None]


class Tree:
    """The folder: what is in it now."""

    def __init__(self, root: str, pattern: str | None, recursive: bool) -> None:
        """`pattern` is a shell pattern for file names, or for relative paths when it has a slash in it."""
        self.root = root
        self.recursive = recursive
        self._pattern = re.compile(translate(pattern)) if pattern else None
        self._on_path = bool(pattern and "/" in pattern)

    def path(self, name: str) -> str:
        """The full path of a name; of the folder itself for the empty name."""
        return os.path.join(self.root, name) if name else self.root

    def identity(self) -> tuple[int, int]:
        """Device and inode of the folder, other ones after it was replaced or mounted. Raises OSError if unusable."""
        info = os.stat(self.root)
        if not stat.S_ISDIR(info.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.root)
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.root)
        return info.st_dev, info.st_ino

    def admits(self, name: str) -> bool:
        """Whether a file of this name is one to look at."""
        base = os.path.basename(name)
        if base.startswith(".") or os.path.splitext(base)[1].lower() not in SUFFIXES:
            return False
        return self._pattern is None or self._pattern.match(name if self._on_path else base) is not None

    def is_folder(self, name: str) -> bool:
        """Whether this is a folder that is listed: a real one, not hidden, and folders below the first count."""
        if not self.recursive or os.path.basename(name).startswith("."):
            return False
        path = self.path(name)
        return os.path.isdir(path) and not os.path.islink(path)

    def key(self, name: str) -> FileKey | None:
        """The file as it is now, None if there is none. What cannot be looked at has a key without time and size."""
        path = self.path(name)
        try:
            info = os.stat(path)
        except OSError:
            try:
                info = os.lstat(path)  # a broken link is something, and has a time of its own
            except FileNotFoundError:
                return None
            except OSError:
                return FileKey(name, 0, 0)
        if stat.S_ISDIR(info.st_mode):  # its time changes with every file put into it, which makes it no new thing
            return FileKey(name, 0, 0)
        return FileKey(name, info.st_mtime_ns, info.st_size)

    def entries(self, folder: str, below: list[str]) -> Iterator[FileKey]:
        """The files of one folder that are to be looked at; its sub-folders are added to `below`.

        A sub-folder that cannot be listed is itself such a file, so that it is reported like one. Raises OSError
        when the watched folder itself cannot be listed.
        """
        try:
            with os.scandir(self.path(folder)) as listing:
                for entry in listing:
                    name = os.path.join(folder, entry.name)
                    if self.recursive and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        below.append(name)
                    if self.admits(name) and (key := self.key(name)) is not None:
                        yield key
        except (FileNotFoundError, NotADirectoryError):
            if not folder:
                raise
        except OSError:
            if not folder:
                raise
            yield FileKey(folder, 0, 0)


class Watch:
    """Which names changed in which folders: inotify, through watchfiles.

    The folders are named one by one instead of letting watchfiles go down by itself: it follows symbolic links
    to folders (one to `/` would have it watch the whole machine), and a file that is put into a new folder before
    that is watched would be missed.
    """

    def __init__(self, root: str, enabled: bool) -> None:
        """Watch nothing yet. When not `enabled`, never."""
        self.problem = ""
        """Why changes are not seen, in words; empty while they are."""
        self._root = root
        self._enabled = enabled
        self._folders: set[str] = set()
        self._changes: Changes | None = None
        self._former: list[tuple[Changes, float]] = []  # replaced watches that may still have something to tell
        self._unread: set[str] = set()
        self._missed = False
        self._gap = False  # for a moment nothing was watched

    def add(self, folders: Iterable[str]) -> None:
        """Watch these folders as well, from before this returns."""
        new = {folder for folder in folders if _is_utf8(folder)} - self._folders
        if not self._enabled or not new:
            return
        self._folders |= new
        if self._changes is not None:
            self._former.append((self._changes, time.monotonic() + _FORMER_S))
            self._changes = None
            self._retire(self._former[:-_MAX_FORMER])
        self.problem = self._begin()
        if self.problem and self._former:  # what is allowed holds for these and the new one together
            self._retire(self._former)
            self.problem = self._begin()
            self._gap = not self.problem

    def drop(self, folder: str) -> None:
        """Forget a folder that was moved, deleted or replaced, and everything below it."""
        if not folder:
            self._folders.clear()
        elif folder in self._folders:
            self._folders = {name for name in self._folders if name != folder and not name.startswith(f"{folder}/")}

    def clear(self) -> None:
        """Watch nothing any more."""
        self._folders.clear()
        self._retire(self._former)
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        self._unread.clear()
        self._missed = self._gap = False
        self.problem = ""

    def changed(self) -> set[str] | None:
        """The names that changed since the last call; the empty name is the folder itself. Takes a millisecond.

        None if something was missed: everything has to be looked through, and added as far as it is new.
        """
        for changes in (self._changes, *(former for former, _ in self._former)):
            if changes is not None:
                self._drain(changes)
        self._retire([former for former in self._former if former[1] < time.monotonic()])
        if self._missed:
            self.clear()
            return None
        if self._gap:
            self._gap = False
            return None
        names, self._unread = self._unread, set()
        return names

    def _begin(self) -> str:
        """Watch all folders; why the system does not allow that, in words."""
        try:
            self._changes = self._start()
        except (OSError, RuntimeError) as error:  # RuntimeError: watchfiles' own, for instance for too many instances
            what = str(error).partition(" about ")[0]  # the folder that was one too many is another one each time
            return (
                f"new files are only seen at the next rescan, because the kernel does not report them: {what} "
                "(fs.inotify.max_user_watches and fs.inotify.max_user_instances can be raised with sysctl)"
            )
        return ""

    def _start(self) -> Changes:
        """Begin to watch all folders that can be. Raises OSError or RuntimeError when that is more than is allowed."""
        for tries_left in reversed(range(_TRIES)):
            paths = [os.path.join(self._root, folder) for folder in self._folders]
            changes = watch(
                *(path for path in paths if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)),
                watch_filter=None,
                recursive=False,
                force_polling=False,
                ignore_permission_denied=False,  # it would ignore as well that no more watches are allowed
                debug=False,
                # We ask often and never wait inside: 1 ms without a change is the end of an answer.
                step=1,
                debounce=20,
                rust_timeout=1,
                yield_on_timeout=True,
            )
            try:
                self._note(next(changes))
                return changes
            except (FileNotFoundError, PermissionError):  # a folder vanished in between; the others remain
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _retire(self, former: list[tuple[Changes, float]]) -> None:
        for item in list(former):
            self._drain(item[0])
            item[0].close()
            self._former.remove(item)

    def _drain(self, changes: Changes) -> None:
        try:
            self._note(next(changes))
        except (RuntimeError, StopIteration):  # watchfiles' internal error: a name that is not UTF-8 is one to it
            self._missed = True

    def _note(self, changes: set[tuple[Change, str]]) -> None:
        for _, path in changes:
            name = os.path.relpath(path, self._root)
            self._unread.add("" if name == "." else name)


def _is_utf8(name: str) -> bool:
    """Whether watchfiles can be given this name; if not, the rescans find what is in there."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
