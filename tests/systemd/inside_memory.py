"""Proves the memory watchdog in a real systemd, within a real MemoryMax=: run by test_memory_max.py.

    run-in-systemd.sh -- python -m tests.systemd.inside_memory                   a model of a small shape, made here
    run-in-systemd.sh -- python -m tests.systemd.inside_memory DIRECTORY         a model that everybody may read

The limit is below what the model's full context needs, in int8. As in inside_service.py, each proof is one line of
output; lines with figures come before it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from edge_daemon.bench.random_model import SHAPES, write_random
from edge_daemon.memory import CGROUP_RESERVE_BYTES, Needs
from edge_daemon.moondream.config import Templates, TextConfig, Tokens, VisionConfig, load_config
from edge_daemon.moondream.footprint import footprint
from edge_daemon.needs import needs_of
from edge_daemon.stages import IN_WORDS
from edge_daemon.units import MIB
from tests.endless import never_end
from tests.integration.service import subscribed, wait_for
from tests.systemd import inside_service
from tests.systemd.inside_service import (
    BROKER_PORT,
    CONFIG,
    DROP_INS,
    UNIT,
    Machine,
    child,
    document,
    first,
    journal,
    run,
)

MADE = Path("/opt/model")
OTHERS_BYTES = 60 * MIB
"""What the daemon and a grabber take, about."""
RUNTIME_BYTES = 230 * MIB
"""What the worker's program takes here, about."""
ROOM_BYTES = 32 * MIB
"""For positions that a short caption could do without."""
TOKENS = 450
"""More than the limit leaves room for."""
SHORT_TOKENS = 20
"""About a short caption: what is waited for when memory has returned is the first result, not the end of a long one."""
RESUMED_WITHIN_S = 30.0
TAKE = """\
import sys, time
taken = []
for line in sys.stdin:
    taken.append(bytearray(b"x") * (int(line) << 20)) if int(line) else taken.clear()
    print(len(taken), flush=True)
"""


class Taker:
    """A process in the unit's cgroup that takes memory as it is told."""

    def __init__(self) -> None:
        argv = [sys.executable, "-c", TAKE]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        (group() / "cgroup.procs").write_text(str(self.process.pid))

    def take(self, mib: int) -> None:
        """Take so much more, or with 0 give all of it back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def end(self) -> None:
        """Give all back, whether or not the kernel has killed this as well."""
        self.process.kill()
        self.process.wait()


def group() -> Path:
    """The unit's memory cgroup."""
    v1 = Path("/sys/fs/cgroup/memory/system.slice") / UNIT
    return v1 if v1.is_dir() else Path("/sys/fs/cgroup/system.slice") / UNIT


def number(*names: str) -> int:
    """What the first of these files of the cgroup says, of version 1 and 2."""
    return next(int((group() / name).read_text()) for name in names if (group() / name).exists())


def kills() -> int:
    """Processes of the unit that the kernel killed for memory."""
    names = ("memory.oom_control", "memory.events")
    text = next((group() / name).read_text() for name in names if (group() / name).exists())
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    assert found, text
    return int(found[1])


def room_bytes() -> int:
    """What the cgroup has left before the kernel kills, as the daemon reckons."""
    stat = dict(line.split() for line in (group() / "memory.stat").read_text().splitlines())
    files = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in ("inactive_file", "active_file"))
    return number("memory.limit_in_bytes", "memory.max") - number("memory.usage_in_bytes", "memory.current") + files


def memory_of(machine: Machine) -> dict[str, Any]:
    """What health says of memory."""
    last = machine.heard.last_health()
    found: dict[str, Any] = last["memory"] if last else {}
    return found


def captioned(machine: Machine) -> dict[str, Any]:
    """The result of the next picture, whatever it says: random weights need not have words."""
    since, name = machine.now(), machine.drop_next_picture()
    return document(first(machine.heard, "inbox/caption", lambda m: bool(document(m)["file"] == name), since))


def keeps_captioning(machine: Machine) -> None:
    """The limit does not hold the full context: a shorter KV cache, a caption that fills it, no kill."""
    run("systemctl", "start", UNIT)
    memory = wait_for("a stage", lambda: (m := memory_of(machine)).get("worker_bytes") and m)
    assert memory["stage"] == "capped", memory
    assert 0 < memory["kv_positions"] < memory["kv_positions_full"], memory
    said = captioned(machine)
    print(f"  {said['tokens']} tokens, kv_tokens {said['kv_tokens']}, finish_reason {said['finish_reason']}")
    assert said["kv_tokens"] < memory["kv_positions_full"], said
    assert said["finish_reason"] == "memory", said
    memory = memory_of(machine)
    worker = child("edge_daemon.worker")
    assert worker is not None
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{worker.pid}/status").read_text())
    assert peak
    print(f"  MemoryMax {memory['cgroup']['limit_bytes'] / MIB:.0f} MiB, budget {memory['limit_bytes'] / MIB:.0f}")
    print(f"  cap {memory['kv_positions']} of {memory['kv_positions_full']} positions")
    print(
        f"  peak of the worker {int(peak[1]) / 1024:.0f} MiB resident; {memory['worker_bytes'] / MIB:.0f} its own now"
    )
    print(f"  peak of the cgroup {number('memory.max_usage_in_bytes', 'memory.peak') / MIB:.0f} MiB, files included")
    assert kills() == 0
    assert "SIGKILL" not in journal()
    configure(max_tokens=SHORT_TOKENS)
    before = len(stages_in(journal()))
    run("systemctl", "restart", UNIT)
    wait_for("capped again", lambda: stages_in(journal())[before:] == ["capped"])


def gives_up_in_order(machine: Machine) -> None:
    """Another process takes memory, slowly: every stage in its turn, one after the other, and no kill."""
    taker, before = Taker(), len(stages_in(journal()))
    machine.taker = taker  # type: ignore[attr-defined]
    start_s = time.monotonic()

    def squeezed() -> bool:
        if room_bytes() > CGROUP_RESERVE_BYTES * 3 // 4:
            taker.take(4)
        time.sleep(0.05)
        return bool(memory_of(machine)["stage"] == "unloaded")

    wait_for("the model is unloaded", squeezed)
    print(f"  unloaded after {time.monotonic() - start_s:.1f} s")
    entered = stages_in(journal())[before:]
    print(f"  entered: {' → '.join(entered)}")
    assert entered == ["released", "paused", "recycled", "unloaded"], entered
    assert child("edge_daemon.worker") is None
    assert kills() == 0
    assert memory_of(machine)["reason"]
    health = machine.heard.last_health()
    assert health is not None
    assert (health["state"], health["worker"]["state"]) == ("degraded", "unloaded"), health


def comes_back_in_order(machine: Machine) -> None:
    """Pictures wait; the memory is given back; the stages are left one after the other, and the pictures captioned."""
    taker: Taker = machine.taker  # type: ignore[attr-defined]
    since, before = machine.now(), len(stages_in(journal()))
    machine.drop_next_picture()
    time.sleep(2)
    assert not [m for m in machine.heard.messages[since:] if m.topic.endswith("/event")], "captioned without memory"
    taker.take(0)
    start_s = time.monotonic()
    heard = first(machine.heard, "inbox/caption", lambda m: True, since)
    taken_s = time.monotonic() - start_s
    print(f"  the first result {taken_s:.1f} s after memory was there ({document(heard)['tokens']} tokens of it)")
    wait_for("capped, as at the start", lambda: memory_of(machine)["stage"] == "capped")
    left = stages_in(journal())[before:]
    print(f"  left: {' → '.join(left)}")
    assert left == ["recycled", "paused", "released", "capped"], left
    assert kills() == 0
    memory = memory_of(machine)
    health = machine.heard.last_health()
    assert health is not None
    assert (memory["recycles"], health["worker"]["restarts"]) == (1, 0), health
    assert taken_s < RESUMED_WITHIN_S, f"{taken_s:.1f} s"


def survives_a_grab(machine: Machine) -> None:
    """Memory goes faster than stages can follow: the model is ended at once, and nothing is killed."""
    taker: Taker = machine.taker  # type: ignore[attr-defined]
    while room_bytes() > CGROUP_RESERVE_BYTES // 4 and memory_of(machine)["stage"] != "unloaded":
        taker.take(12)
        time.sleep(0.15)
    wait_for("the model is unloaded", lambda: memory_of(machine)["stage"] == "unloaded")
    taker.take(0)
    wait_for("a worker", lambda: child("edge_daemon.worker"))
    assert kills() == 0
    assert "restarting" not in [document(m)["worker"]["state"] for m in machine.heard.on("health")]


def killed_by_the_kernel(machine: Machine) -> None:
    """The daemon cannot look (it is frozen), the kernel kills: the worker dies, in words and with numbers."""
    daemon, taker = inside_service.main_process(), machine.taker  # type: ignore[attr-defined]
    (DROP_INS / "patience.conf").write_text("[Service]\nWatchdogSec=0\n")
    worker = wait_for("a worker", lambda: child("edge_daemon.worker"))
    wait_for("it is ready", lambda: (h := machine.heard.last_health()) and h["worker"]["state"] == "ready")
    daemon.suspend()
    while not kills():
        taker.take(8)
        time.sleep(0.05)
    taker.end()
    wait_for("the worker is gone", lambda: inside_service.gone(worker))
    daemon.resume()
    captioned(machine)
    died = first(machine.heard, "health", lambda m: "out of memory" in document(m)["worker"]["last_death"])
    print(f"  {document(died)['worker']['last_death']}")
    assert "the kernel was out of memory (the worker used" in document(died)["worker"]["last_death"]
    assert kills() >= 1


PROOFS = (keeps_captioning, gives_up_in_order, comes_back_in_order, survives_a_grab, killed_by_the_kernel)
"""In this order: each begins where the one before it ends."""


def stages_in(text: str) -> list[str]:
    """The stages that the journal speaks of, in their order; the first is that of the start."""
    words = {said: stage.name.lower() for stage, said in IN_WORDS.items()}
    return [words[found] for found in re.findall(f"(?:{'|'.join(map(re.escape, words))})(?= \\()", text)]


def make_model() -> Path:
    """Small weights, a long context, and words without end: what the memory of a KV cache is seen by."""
    MADE.mkdir()
    config = replace(
        SHAPES["0.5b"],
        name="small-with-a-long-context",
        vision=VisionConfig(dim=64, ff_dim=128, layers=2, heads=2, patch_px=14, crop_px=140, projection_dim=128),
        text=TextConfig(dim=1024, ff_dim=512, layers=16, heads=16, vocab=1024, max_context=2048, rotary_dim=32),
        region=None,
        bos_state="computed",
        tokens=Tokens(bos=1, eos=1),
        templates=Templates(caption={"short": [2, 3, 4]}),
    )
    write_random(MADE, config)
    never_end(MADE)
    words = {f"word{index}": index for index in range(1024)}
    Tokenizer(WordLevel(words, unk_token="word0")).save(str(MADE / "tokenizer.json"))
    for file in MADE.iterdir():
        file.chmod(0o644)
    return MADE


def configure(**model: Any) -> None:
    """Change the section of the model."""
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"] |= model
    CONFIG.write_text(yaml.safe_dump(settings))


def limit_bytes(needs: Needs) -> int:
    """Of the cgroup: in between what the shortest cache needs and what the full context does."""
    return needs.at(needs.smallest_positions) + ROOM_BYTES + CGROUP_RESERVE_BYTES + OTHERS_BYTES


def main(directory: Path | None) -> int:
    """Go through all proofs; the number of those that failed."""
    if not Path("/run/ris").is_dir():
        sys.exit("only inside run-in-systemd.sh: this clears directories")
    model = directory or make_model()
    kv = "auto" if directory else "float32"
    config = load_config(model)
    needs = needs_of(footprint(model, config, "int8", kv), config, RUNTIME_BYTES)
    inside_service.install(str(model))
    configure(precision="int8", kv_precision=kv, max_tokens=TOKENS, temperature=1.0, threads=2)
    limit = limit_bytes(needs)
    smallest, full = (needs.at(positions) / MIB for positions in (needs.smallest_positions, needs.max_positions))
    print(f"  the full context needs {full:.0f} MiB, the shortest {smallest:.0f}")
    (DROP_INS / "memory.conf").write_text(f"[Service]\nMemoryMax={limit}\nWatchdogSec=0\n")
    if directory and not directory.is_relative_to("/opt"):
        (DROP_INS / "model.conf").write_text(f"[Service]\nBindReadOnlyPaths={directory}\n")
    run("systemctl", "daemon-reload")
    with subscribed(BROKER_PORT) as heard:
        return inside_service.go_through(PROOFS, Machine(heard, Path("/run/pictures")))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else None))
