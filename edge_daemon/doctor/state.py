"""The state directory: who may do what in it, locks that were left behind, and the outbox. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from edge_daemon import renewal
from edge_daemon.book import Book, is_damage
from edge_daemon.doctor.finding import Finding, Fix, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Account, Subject, is_root, lock_holder, user_name
from edge_daemon.errors import UnavailableError
from edge_daemon.models.store import Store
from edge_daemon.salvage import COMPANIONS, damaged_files
from edge_daemon.units import MIB

MANY = 2000
"""Files that are looked at."""
ENTRIES_AT_ONCE = 500


def look(subject: Subject) -> Iterator[Finding]:
    """The directory; then what is in it, if it can be read."""
    place, account = subject.state_dir, subject.account
    if subject.unit.gives_directories:
        yield skipped("state", f"systemd gives {place} to {account.name} whenever the service starts")
    else:
        found = directory(place, account)
        yield found
    if not place.is_dir():
        return
    list(islice(place.iterdir(), 1))  # whoever may not look must not be told that nothing is there
    if not subject.unit.gives_directories:
        yield contents(place, account)
    yield locks(place)
    yield outbox(place / "outbox.db", account)


def directory(place: Path, account: Account) -> Finding:
    """The state directory itself."""
    if not place.exists():
        return warning(
            "state",
            f"{place} does not exist yet",
            "It holds the outbox and the models. The service creates it when it starts, if it may.",
            f"sudo install -d -m 700 -o {account.name} {place}",
            Fix(f"create the directory {place} for {account.name}", f"rmdir {place}", lambda: _make(place, account)),
        )
    if not place.is_dir():
        meaning = "This must be a directory, for the outbox and the models."
        return problem("state", f"{place} is not a directory", meaning, f"sudo mv {place} {place}.old")
    status = place.stat()
    what = f"{place} belongs to {user_name(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):o}"
    if not account.may(status, os.R_OK | os.W_OK | os.X_OK):
        mends = f"sudo chown {account.name} {place}; sudo chmod u+rwx {place}"
        meaning = f"The service runs as {account.name}, who cannot keep results there."
        return problem("state", what, meaning, mends, _rights(place, account, [place]))
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        meaning = "Everybody on this machine can change what the service publishes, and which model it loads."
        return warning("state", what, meaning, f"sudo chmod o-w {place}", _closed(place))
    return ok("state", what)


def contents(place: Path, account: Account) -> Finding:
    """Files of others in it: `sudo edge-daemon …` leaves them."""
    wrong = []
    for path in islice(sorted(place.rglob("*")), MANY):
        try:
            status = path.lstat()
        except FileNotFoundError:  # the service works meanwhile
            continue
        if stat.S_ISLNK(status.st_mode):
            continue
        needed = os.R_OK | os.W_OK | os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK | os.W_OK
        if place / "models" in (path, *path.parents):  # these are only read
            needed &= ~os.W_OK
        if not account.may(status, needed):
            wrong.append(path)
    if not wrong:
        return ok("state.files", f"{account.name} may use everything in {place}")
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return problem(
        "state.files",
        f"{account.name} may not use {wrong[0]}{more}",
        "Another user created them, as `sudo edge-daemon` does. The service can neither read nor write them.",
        f"sudo chown -R {account.name} {place}; sudo chmod -R u+rwX {place}",
        _rights(place, account, wrong),
    )


def locks(place: Path) -> Finding:
    """What an import that was killed has left."""
    left = Store(place).leftovers()
    if not left:
        return ok("locks", "no import has left anything behind")
    names = ", ".join(path.name for path in left)
    return warning(
        "locks",
        f"left behind in {left[0].parent}: {names}",
        "The import of a model was killed; its remains take up disk until the next import.",
        "edge-daemon doctor --fix",
        Fix(
            f"remove what an import has left ({names})",
            "cannot be undone; a model that was only moved away comes back to its place",
            lambda: _sweep(place),
        ),
    )


def outbox(path: Path, account: Account) -> Finding:
    """What waits in it; of a copy, so that nothing is changed."""
    aside = damaged_files(path)
    kept = f"; kept aside as damaged: {', '.join(aside)}" if aside else ""
    if not path.exists():
        return ok("outbox", f"does not exist yet{kept}")
    size_mib = sum(file.stat().st_size for file in _files(path)) / MIB
    holder = lock_holder(path)
    if holder is not None:
        return ok("outbox", f"in use by process {holder}, {size_mib:.1f} MiB on disk{kept}")
    try:
        count, damaged = _count(path)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return _damaged(path, str(error), account)
        return problem("outbox", f"{path}: {error}", "Results cannot be kept on disk.", f"sudo ls -l {path.parent}")
    except OSError as error:
        return problem("outbox", f"{path}: {error.strerror}", "Results cannot be kept.", f"sudo ls -l {path.parent}")
    if damaged:
        return _damaged(path, f"{damaged} of {count} results cannot be read", account)
    return ok("outbox", f"{count} results wait for the broker, {size_mib:.1f} MiB on disk{kept}")


def _files(path: Path) -> list[Path]:
    """A database and its log, if they are there."""
    return [file for companion in COMPANIONS if (file := Path(f"{path}{companion}")).exists()]


def _count(path: Path) -> tuple[int, int]:
    """Results, and how many of them are damaged. Raises sqlite3.Error, OSError."""
    with tempfile.TemporaryDirectory(prefix="edge-daemon-") as scratch:
        for file in _files(path):
            shutil.copyfile(file, Path(scratch) / file.name)
        book = Book(Path(scratch) / path.name)
        try:
            damaged, last = 0, 0
            while rows := book.head(ENTRIES_AT_ONCE, last, book.last_row):
                damaged += sum(entry is None for _, entry in rows)
                last = rows[-1][0]
            return book.count, damaged
        finally:
            book.close()


def _damaged(path: Path, why: str, account: Account) -> Finding:
    return problem(
        "outbox",
        f"{path} is damaged: {why}",
        "When it starts, the service sets it aside and takes over what can be read; pictures whose mark is lost are "
        "captioned again, with the same ids. If it happens again, the card is failing.",
        "edge-daemon doctor --fix",
        Fix(
            f"set {path} aside as {path.name}.damaged-N and take over what can be read of it",
            f"stop the service and rename {path.name}.damaged-N back to {path.name}",
            lambda: _renew(path, account),
        ),
    )


# ---- what --fix does --------------------------------------------------------------------------------------


def _make(place: Path, account: Account) -> str:
    place.mkdir(mode=0o700, parents=True)
    _give(place, account)
    return f"{place} is there"


def _give(path: Path, account: Account) -> None:
    """To the service's user; only root can, and only a user that exists can have it."""
    if is_root() and account.uid != 0 and user_name(account.uid) == account.name:
        os.chown(path, account.uid, -1)


def _rights(place: Path, account: Account, paths: list[Path]) -> Fix:
    listed = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return Fix(
        f"give {listed} to {account.name}, readable and writable",
        f"the previous owner and mode of each are printed: sudo chown OWNER PATH; sudo chmod MODE PATH (below {place})",
        lambda: _mend_rights(place, account, paths),
    )


def _mend_rights(place: Path, account: Account, paths: list[Path]) -> str:
    told = []
    for path in paths:
        with _held(place, path) as held:
            before = held.stat()
            told.append(f"{path} was {before.st_uid}:{before.st_gid} {stat.S_IMODE(before.st_mode):o}")
            _give(held, account)
            held.chmod(stat.S_IMODE(before.st_mode) | (0o700 if stat.S_ISDIR(before.st_mode) else 0o600))
            if not account.may(held.stat(), os.R_OK):
                raise UnavailableError(f"{path} cannot be given to {account.name}: run the doctor with sudo")
    return "; ".join(told)


@contextmanager
def _held(place: Path, path: Path) -> Iterator[Path]:
    """Another name for a path in `place`, for the same file whatever is put there meanwhile.

    Who owns `place` may put a link to a file of root's there. Raises UnavailableError when one is on the way.
    """
    if sys.platform != "linux":
        yield path
        return
    with ExitStack() as stack:
        held = os.open(place, os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, held)
        for part in path.relative_to(place).parts:
            try:
                held = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)
            except OSError as error:
                raise UnavailableError(f"{path} is not what it was: {error.strerror}") from error
            stack.callback(os.close, held)
        if stat.S_ISLNK(os.fstat(held).st_mode):
            raise UnavailableError(f"{path} is a symbolic link now; nothing was changed")
        yield Path(f"/proc/self/fd/{held}")


def _closed(place: Path) -> Fix:
    mode = stat.S_IMODE(place.stat().st_mode)

    def close() -> str:
        place.chmod(mode & ~stat.S_IWOTH)
        return f"{place} has mode {mode & ~stat.S_IWOTH:o}"

    return Fix(f"forbid others to write in {place}", f"chmod {mode:o} {place}", close)


def _sweep(place: Path) -> str:
    Store(place).sweep()
    return "removed"


def _renew(path: Path, account: Account) -> str:
    if (holder := lock_holder(path)) is not None:
        raise UnavailableError(f"{path} is in use by process {holder}: the service replaces it when it starts")
    before = set(damaged_files(path))
    try:
        book = renewal.renewed(path, "found by the doctor")
    except sqlite3.Error as error:
        raise UnavailableError(f"{path}: {error}") from error
    count = book.count
    book.close()
    for file in _files(path):
        _give(file, account)
    aside = ", ".join(sorted(set(damaged_files(path)) - before))
    return f"{count} results were taken over; the damaged file is {aside}"
