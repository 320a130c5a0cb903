"""One picture, now: a file, or the newest file of a folder, whatever was captioned before."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from edge_daemon import picture
from edge_daemon.errors import PictureError
from edge_daemon.messages import FileKey, Frame, Problem
from edge_daemon.picture import Decoder, Limits
from edge_daemon.sources import Daemon
from edge_daemon.sources.folder_tree import Tree
from edge_daemon.sources.frames import frame_of


@dataclass(frozen=True)
class SingleOptions:
    """Where the picture is."""

    path: str
    pattern: str | None = None
    """Of a folder: which files, as FolderOptions."""
    recursive: bool = True


class SingleSource:
    """A file or a folder, read once each time it is asked."""

    def __init__(self, options: SingleOptions, limits: Limits, decoder: Decoder) -> None:
        """Nothing is touched yet."""
        self.decoder = decoder.name
        self._options = options
        self._limits = limits
        self._decoder = decoder

    def next(self, daemon: Daemon) -> Frame | Problem:
        """The picture, or why there is none."""
        path, key = self._options.path, None
        if os.path.isdir(path):
            tree = Tree(path, self._options.pattern, self._options.recursive)
            try:
                key = newest(tree, daemon)
            except OSError as error:
                return Problem(f"the folder {path!r} cannot be read: {error.strerror}", None)
            if key is None:
                return Problem("the folder has no pictures", None)
            path = tree.path(key.name)
        started_s = time.perf_counter()
        try:
            loaded = picture.load(path, self._decoder, self._limits)
        except PictureError as error:
            return Problem(str(error), key)
        taken_ms = (time.perf_counter() - started_s) * 1e3
        return frame_of(key, time.time() if key is None else key.mtime_ns / 1e9, loaded, taken_ms)


def newest(tree: Tree, daemon: Daemon) -> FileKey | None:
    """The file of a folder that was changed last; None when there is none. Raises OSError if it cannot be listed."""
    found: FileKey | None = None
    folders = [""]
    while folders:
        for key in tree.entries(folders.pop(), folders):
            daemon.alive()
            if found is None or (key.mtime_ns, key.name) > (found.mtime_ns, found.name):
                found = key
    return found
