"""What the kernel lets this process take (setrlimit(2)). Windows has no such limits: nothing is held there."""

from __future__ import annotations

import sys


def data_limit_bytes() -> int | None:
    """How much memory this process may allocate; None: no limit is set."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


def limit_data(limit_bytes: int) -> None:
    """Let allocations fail beyond this; it can be raised again.

    RLIMIT_DATA, not RLIMIT_AS: it counts what may become resident (heap, anonymous private mappings, stacks), but
    not the address space that malloc reserves per thread and the libraries that are mapped, several times as much.
    """
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def confine(memory_bytes: int, open_files: int) -> None:
    """For good: so much memory, no file written (nor a core file), so many files open.

    RLIMIT_NPROC is no help: it counts threads, which decoders need, and all processes of this user.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # pipes are no files
        resource.RLIMIT_NOFILE: min(open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    }
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, limit))
