"""A real worker with a real model does with less memory when it is told: at once, at a word, and really less."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

from edge_daemon import rehearsal, stages
from edge_daemon.bench.random_model import SHAPES, write_random
from edge_daemon.captioner import Captioner
from edge_daemon.config import ModelConfig
from edge_daemon.errors import ChildEnded
from edge_daemon.memory import CGROUP_RESERVE_BYTES, SMALLEST_ANSWER_POSITIONS, needs_from
from edge_daemon.memory_watchdog import MemoryWatchdog
from edge_daemon.messages import Request, Task
from edge_daemon.moondream.config import Templates, TextConfig, Tokens, VisionConfig
from edge_daemon.readings import Files
from edge_daemon.stages import MARGIN_BYTES, Stage
from edge_daemon.units import MIB
from tests.endless import never_end
from tests.integration.paper_cgroup import PaperFiles
from tests.integration.service import wait_for

ROOT = Path(__file__).parents[2]
PREFIX = 101
SMALLEST = PREFIX + SMALLEST_ANSWER_POSITIONS
KIB_PER_POSITION = 16
"""8 layers, keys and values of 256 numbers of 4 bytes."""
LONG = 600
WORDS = 512
PICTURE = rehearsal.request()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, and it never stops."""
    text = TextConfig(dim=256, ff_dim=256, layers=8, heads=4, vocab=2 * WORDS, max_context=2048, rotary_dim=32)
    directory = talker(tmp_path_factory.mktemp("talker"), text)
    never_end(directory)
    return directory


def talker(directory: Path, text: TextConfig) -> Path:
    """Random weights, which speak in words of two tokens."""
    config = replace(
        SHAPES["0.5b"],
        name="talker",
        vision=VisionConfig(dim=32, ff_dim=64, layers=1, heads=2, patch_px=14, crop_px=140, projection_dim=64),
        text=text,
        region=None,
        bos_state="computed",
        tokens=Tokens(bos=1, eos=1),
        templates=Templates(caption={"short": [2, 3, 4]}),
    )
    write_random(directory, config)
    names = [*(f"Ġbegin{n}" for n in range(WORDS)), *(f"end{n}" for n in range(WORDS))]
    built = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token=names[0]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.save(str(directory / "tokenizer.json"))
    return directory


class Watched:
    """A captioner with a real worker."""

    def __init__(self, model: Path) -> None:
        self.steps = 0
        config = ModelConfig(precision="float32", threads=1, max_tokens=LONG)
        self.captioner = Captioner(config, model, self._beat, lambda: None)

    def _beat(self) -> None:
        self.steps += 1

    def request(self, tasks: int = 1) -> Request:
        """A picture and so many long answers about it."""
        asked = [Task(f"caption{number}", "caption", "short") for number in range(tasks)]
        return replace(PICTURE, tasks=asked, max_tokens=LONG, temperature=1.0)

    def held_mib(self) -> float:
        """What the worker holds now."""
        held = Files().read(self.captioner.pid).worker_bytes
        assert held is not None
        return held / MIB


@pytest.fixture
def watched(model: Path) -> Watched:
    return Watched(model)


async def test_a_cap_holds_in_the_middle_of_a_caption_and_the_buffer_really_shrinks(watched: Watched) -> None:
    captioner = watched.captioner
    ready = await captioner.ready()
    assert ready.kv_positions == 2048
    needs = captioner.needs
    assert needs is not None
    assert (needs.smallest_positions, needs.bytes_per_position) == (SMALLEST, KIB_PER_POSITION << 10)

    empty_mib = watched.held_mib()
    results = await captioner.run(watched.request())
    (said,) = results.tasks
    filled = PREFIX + 3 + said.tokens
    assert said.tokens == LONG
    assert results.kv_positions == 2048
    touched_mib = results.kv_touched_bytes / MIB
    assert filled * KIB_PER_POSITION / 1024 - 1 <= touched_mib <= (filled + 1) * KIB_PER_POSITION / 1024
    full_mib = watched.held_mib()

    await captioner.cap(SMALLEST, release=True)
    wait_for("a smaller buffer", lambda: watched.held_mib() < full_mib - 0.9 * touched_mib)
    print(f"\nempty {empty_mib:.0f} MiB, with {filled} positions {full_mib:.0f}, capped {watched.held_mib():.0f}")

    await captioner.cap(2048, release=False)
    before = watched.steps
    asking = asyncio.create_task(captioner.run(watched.request(tasks=2)))
    while watched.steps < before + 100:
        await asyncio.sleep(0.001)
    await captioner.cap(SMALLEST, release=True)
    results = await asking
    first, second = results.tasks
    assert (first.finish_reason, second.finish_reason) == ("memory", "memory")
    assert 90 < first.tokens + second.tokens < LONG, "they are generated together"
    assert results.kv_positions == SMALLEST
    results = await captioner.run(watched.request())
    assert results.tasks[0].tokens == SMALLEST - PREFIX - 3 + 1
    assert results.tasks[0].finish_reason == "memory"
    assert results.kv_touched_bytes <= SMALLEST * KIB_PER_POSITION << 10
    assert captioner.state.restarts == 0
    await captioner.stop(60)


async def test_a_worker_that_finds_no_memory_at_its_first_start_is_there_when_memory_is(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker refuses and says what it needs; what others take stands on paper."""
    monkeypatch.setattr(stages, "CALM_S", 0.2)
    captioner = watched.captioner
    files = captioner.witness.files = PaperFiles.made(tmp_path, 4096 * MIB, 3832 * MIB)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    with pytest.raises(ChildEnded, match=r"MiB of memory are missing.*the cgroup's limit of 4096 MiB"):
        await captioner.ready()
    watching = asyncio.create_task(watchdog.run(lambda: None))
    with pytest.raises(ChildEnded):
        await captioner.run(watched.request())
    while watchdog.state.stage != Stage.UNLOADED:
        await asyncio.sleep(0.01)
    assert captioner.state.phase == "unloaded"
    files.use(0)
    await captioner.until_allowed()
    results = await captioner.run(watched.request())
    assert results.tasks[0].text
    assert captioner.state.restarts == 0
    watching.cancel()
    await captioner.stop(60)


@pytest.mark.parametrize("it", ["is unloaded", "waits"])
async def test_a_model_that_fits_in_int8_only_later_is_started_afresh_in_int8(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, it: str
) -> None:
    """It began in float32, which `auto` prefers; what others take from then on leaves no room for that.

    Or not for a caption, and for the rest of it there is room.
    """
    monkeypatch.setattr(stages, "CALM_S", 0.2)
    text = TextConfig(dim=1024, ff_dim=4096, layers=4, heads=8, vocab=2 * WORDS, max_context=256, rotary_dim=32)
    directory = talker(tmp_path_factory.mktemp("larger"), text)
    captioner = Captioner(ModelConfig(threads=1), directory, lambda: None, lambda: None)
    files = captioner.witness.files = PaperFiles.made(tmp_path, 4096 * MIB, 0)
    ready = await captioner.ready()
    in_float32, in_int8 = needs_from(ready.needs), needs_from(ready.least_needs)
    assert ready.precision == "float32"
    assert in_float32 is not None
    assert in_int8 is not None
    held_bytes, lenient_bytes = files.read(captioner.pid).worker_bytes or 0, in_float32.least_bytes - MARGIN_BYTES
    fits_bytes = in_int8.at(in_int8.max_positions)
    may_have_bytes = (fits_bytes + held_bytes) // 2 if it == "is unloaded" else (held_bytes + lenient_bytes) // 2
    assert fits_bytes < held_bytes < lenient_bytes
    others_bytes = 4096 * MIB - CGROUP_RESERVE_BYTES - may_have_bytes

    watchdog, now_s = MemoryWatchdog(captioner, lambda: None), 0.0
    async with asyncio.timeout(60):
        while captioner.state.recycles == 0 or not (captioner.is_ready and captioner.is_allowed):
            files.use(others_bytes + (files.read(captioner.pid).worker_bytes or 0))
            await watchdog.look(now_s)
            await asyncio.sleep(0.01)
            now_s += 1.0
    assert captioner.state.ready is not None
    assert (captioner.state.ready.precision, captioner.state.ready.least_needs) == ("int8", {})
    assert (await captioner.run(PICTURE)).tasks[0].tokens
    assert (captioner.state.recycles, captioner.state.restarts) == (1, 0)
    await captioner.stop(60)


ROPE = """\
import sys, time
import torch
from edge_daemon import memory, worker
from edge_daemon.demo import MODEL_DIR
from tests.integration.test_memory_watchdog import PICTURE
sys.argv = ["worker", "--model", str(MODEL_DIR), "--budget-bytes", str(8 << 30), "--budget-reason", "a test"]
serving, ready = worker.load(worker.parse(), time.monotonic())
worker.tie(memory.needs_from(ready.needs), serving.model.cache.positions)
class Ear:
    def write(self, item): pass
for _ in range(3):
    assert worker.answer(serving, PICTURE, Ear()).tasks[0].text
leaked = []
try:
    while len(leaked) < 100:
        leaked.append(torch.ones(16 << 18))
except RuntimeError as error:
    print(len(leaked), str(error).splitlines()[0])
leaked.clear()
assert worker.answer(serving, PICTURE, Ear()).tasks[0].text
"""


def test_the_last_rope_lets_captions_be_and_holds_a_leak() -> None:
    """16 MiB at a time, in a process with the limit that a worker gives itself."""
    done = subprocess.run([sys.executable, "-c", ROPE], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    blocks, words = done.stdout.split(maxsplit=1)
    assert 14 <= int(blocks) <= 40, done.stdout
    assert "not enough memory" in words or "can't allocate memory" in words
