"""What the service costs while nothing happens, and each caption a card: `python -m tests.bench.left_alone [SECONDS]`.

The real service, the built-in model, a real broker. First a folder into which nothing comes, then two cameras that show
the same for ever, then a folder with picture after picture, watched by strace. Counts, but for the processor's seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from edge_daemon.demo.broker import Broker
from tests.cameras import scenes
from tests.integration.service import Service, Subscriber, running, subscribed, wait_for

CAMERA = Path(__file__).parents[1] / "integration" / "camera.py"
PICTURES = 50


@contextmanager
def service(sources: dict[str, Any] | None = None) -> Iterator[tuple[Service, Subscriber]]:
    """One that has done all that it does at its start; on a folder with all defaults unless told otherwise."""
    given = {"sources": sources} if sources else {"source": {"settle_s": 2, "rescan_s": 60}}
    with (
        tempfile.TemporaryDirectory() as place,
        Broker(Path(place)) as broker,
        subscribed(broker.port) as heard,
        running(Service(Path(place), broker.port, **given)) as made,
    ):
        wait_for("its start", lambda: "a picture takes about" in made.log())
        time.sleep(10)
        yield made, heard
        made.log = lambda: ""  # type: ignore[method-assign]  # `running` would print it


def of_each(pid: int) -> dict[str, tuple[int, float, int]]:
    """Wakeups of all threads, seconds of processor time and bytes that went to a disk, of each process."""
    found = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children()):
        module = next(word for word in process.cmdline() if word.startswith("edge_daemon"))
        name = {"edge_daemon": "parent"}.get(module, f"{module.partition('.')[2]} {process.pid}")
        threads = Path(f"/proc/{process.pid}/task").glob("*/status")
        wakeups = sum(int(t.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for t in threads)
        found[name] = wakeups, sum(process.cpu_times()[:2]), process.io_counters().write_bytes
    return found


def idle(what: str, sources: dict[str, Any] | None, seconds: float) -> list[dict[str, Any]]:
    """A row for each process, and one for the broker."""
    with service(sources) as (made, heard):
        assert made.process is not None
        before, told = of_each(made.process.pid), len(heard.messages)
        time.sleep(seconds)
        after, new = of_each(made.process.pid), heard.messages[told:]
    per_h = 3600 / seconds
    sent = {"messages_per_h": len(new) * per_h, "bytes_per_h": sum(len(m.payload) for m in new) * per_h}
    rows: list[dict[str, Any]] = [{"what": what, **sent}]
    for name in sorted(before):
        wakeups, cpu_s, written = (now - then for now, then in zip(after[name], before[name], strict=True))
        of_it = {"cpu_s_per_h": cpu_s * per_h, "written_bytes_per_h": written * per_h}
        rows.append({"what": what, "process": name, "wakeups_per_s": wakeups / seconds, **of_it})
    return [{key: round(v, 1) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


def _has(heard: Subscriber, results: int) -> bool:
    return len(heard.results()) >= results


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def captions() -> dict[str, Any]:
    """What each has the service write into its state directory, and to its log."""
    with service() as (made, heard):
        assert made.process is not None
        trace = made.directory / "trace"
        argv = f"strace -f -y -qq -s 0 -e pwrite64,write,fdatasync,fsync -o {trace} -p {made.process.pid}".split()
        tracer = subprocess.Popen(argv)
        wait_for("strace", partial(_is_traced, made.process.pid))
        picture, log_bytes = scenes(1, (64, 64))[0], len(made.log())
        for number in range(PICTURES):
            picture.save(hidden := made.inbox / ".new.png")
            hidden.rename(made.inbox / f"{number}.png")
            wait_for("its event", partial(_has, heard, number + 1))
        log_bytes = len(made.log()) - log_bytes
        time.sleep(2)
        tracer.terminate()  # its file is whole when it is gone
        tracer.wait()
        counts: Counter[str] = Counter()
        for call, name, result in re.findall(r"(\w+)\(\d+<([^>]*)>.* = (\d+)$", trace.read_text(), re.MULTILINE):
            if str(made.directory / "state") in name:
                counts["syncs" if "sync" in call else "bytes"] += 1 if "sync" in call else int(result)
    return {"what": "a caption", **{k: round(v / PICTURES, 1) for k, v in {**counts, "log_bytes": log_bytes}.items()}}


def main(seconds: float) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as shown:
        scenes(1)[0].save(Path(shown) / "now.jpg")
        camera = {"type": "command", "command": [sys.executable, str(CAMERA), shown, "1"]}
        two = {"one": camera, "two": dict(camera, command=[*camera["command"]])}
        rows = [*idle("a folder", None, seconds), *idle("two cameras", two, seconds), captions()]
    print(*("  ".join(f"{key} {value}" for key, value in row.items()) for row in rows), json.dumps(rows), sep="\n")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
