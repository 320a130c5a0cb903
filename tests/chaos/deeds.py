"""How each deed of the plan is done, and mended when its time is over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.broker import KeptBroker, Subscriber
from tests.chaos.confinement import PAGE_BYTES, Disk, Memory, Missing
from tests.chaos.pictures import Feeder
from tests.chaos.plan import Deed
from tests.chaos.proxy import Proxy
from tests.chaos.service import Service

BURNERS = 2
HOG = """\
import sys, time
input()  # what was taken before the process is in a cgroup does not count there
block = bytearray(int(sys.argv[1]))
for at in range(0, len(block), 4096):
    block[at] = 1
time.sleep(600)
"""
HOG_LEAVES_BYTES = 24 << 20
NOBODY = "nobody was there"


@dataclass
class World:
    """Everything that something can be done to."""

    service: Service
    broker: KeptBroker
    subscriber: Subscriber
    proxy: Proxy
    feeder: Feeder
    folders: dict[str, Path]
    disk: Disk | None
    memory: Memory | None


async def do(world: World, deed: Deed) -> str:
    """Do it, wait for its time, mend it; what there is to say about it. Raises Missing."""
    return await DEEDS[deed.kind](world, deed)


async def _kill_worker(world: World, deed: Deed) -> str:
    return _signal(world.service.child("edge_daemon.worker"), signal.SIGKILL)


async def _kill_grabber(world: World, deed: Deed) -> str:
    number = random.Random(deed.dice).choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
    return _signal(world.service.child("edge_daemon.grabber", deed.source), number)


def _signal(process: psutil.Process | None, number: signal.Signals) -> str:
    if process is None:
        return NOBODY
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return number.name


async def _freeze_worker(world: World, deed: Deed) -> str:
    return await _frozen(world.service.child("edge_daemon.worker"), deed.for_s)


async def _freeze_grabber(world: World, deed: Deed) -> str:
    return await _frozen(world.service.child("edge_daemon.grabber", deed.source), deed.for_s)


async def _freeze_broker(world: World, deed: Deed) -> str:
    return await _frozen(psutil.Process(world.broker.pid), deed.for_s)


async def _freeze_daemon(world: World, deed: Deed) -> str:
    return await _frozen(psutil.Process(world.service.pid) if world.service.pid else None, deed.for_s)


async def _frozen(process: psutil.Process | None, for_s: float) -> str:
    """SIGSTOP, and SIGCONT unless it was killed meanwhile."""
    if process is None:
        return NOBODY
    try:
        process.suspend()
        await asyncio.sleep(for_s)
        process.resume()
    except psutil.NoSuchProcess:
        return "it was killed meanwhile"
    return "it goes on"


async def _kill_daemon(world: World, deed: Deed) -> str:
    await world.service.kill()
    return "SIGKILL"


async def _restart_daemon(world: World, deed: Deed) -> str:
    await world.service.stop(again=True)
    return "SIGTERM"


async def _damage(world: World, deed: Deed) -> str:
    """What a dying card does to the outbox: after a kill to its log, after a stop to the file itself."""
    dice = random.Random(deed.dice)
    path, log = world.service.state / "outbox.db", world.service.state / "outbox.db-wal"
    said = []

    def damage() -> None:
        victim = log if log.exists() and log.stat().st_size else path
        said.append(f"{victim.name} {spoil(victim, dice, whole=victim == path and results_wait(path))}")

    if dice.random() < 0.5:
        await world.service.kill(damage)
    else:
        await world.service.stop(again=True, meanwhile=damage)
    return said[0]


def results_wait(path: Path) -> bool:
    """Whether the outbox holds results: a page of it may then be all that there is of one."""
    with closing(sqlite3.connect(path)) as outbox:
        return bool(outbox.execute("SELECT count(*) FROM entries").fetchone()[0])


def spoil(path: Path, dice: random.Random, *, whole: bool) -> str:
    """Damage a file in one of several ways; in words. `whole`: nothing of it shall remain."""
    data = bytearray(path.read_bytes())
    at = dice.randrange(len(data))
    match "emptied" if whole else dice.choice(("cut", "overwritten", "a page", "emptied")):
        case "cut":
            path.write_bytes(data[:at])
            return f"cut to {at} of {len(data)} bytes"
        case "overwritten":
            path.write_bytes(data[:at] + dice.randbytes(len(data) - at))
            return f"overwritten from byte {at} of {len(data)} on"
        case "a page":
            at -= at % PAGE_BYTES
            data[at : at + PAGE_BYTES] = dice.randbytes(PAGE_BYTES)
            path.write_bytes(data)
            return f"with another page at byte {at} of {len(data)}"
        case _:
            path.write_bytes(b"")
            return f"emptied of {len(data)} bytes"


async def _kill_broker(world: World, deed: Deed) -> str:
    return await _without_broker(world, deed, forgets=False)


async def _forget(world: World, deed: Deed) -> str:
    return await _without_broker(world, deed, forgets=True)


async def _without_broker(world: World, deed: Deed, *, forgets: bool) -> str:
    """Killed, or stopped with everything it knew deleted; meanwhile its port is closed, or answers with a reset."""
    closed = random.Random(deed.dice).random() < 0.5
    world.subscriber.broker_dies()
    await asyncio.to_thread(world.broker.stop, kill=not forgets)
    if forgets:
        world.broker.memory.unlink(missing_ok=True)
    if closed:
        await world.proxy.refuse()
    await asyncio.sleep(deed.for_s)
    await asyncio.to_thread(world.broker.start)
    await world.proxy.listen()
    return "the port was closed" if closed else "the port answered with a reset"


async def _starve_memory(world: World, deed: Deed) -> str:
    """Another process of the same cgroup takes nearly all that is left."""
    if world.memory is None:
        raise Missing("no memory cgroup")
    size = max(0, world.memory.left_bytes() - HOG_LEAVES_BYTES)
    hog = await asyncio.create_subprocess_exec(sys.executable, "-c", HOG, str(size), stdin=asyncio.subprocess.PIPE)
    try:
        world.memory.take_in(hog.pid)
        assert hog.stdin is not None
        hog.stdin.write(b"\n")
        await asyncio.sleep(deed.for_s)
    finally:
        with suppress(ProcessLookupError):
            hog.kill()
        await hog.wait()
    return f"{size >> 20} MiB taken, {world.memory.oom_kills()} OOM kills so far"


async def _starve_processor(world: World, deed: Deed) -> str:
    argv = [sys.executable, "-c", "while True: pass"]
    burners = [await asyncio.create_subprocess_exec(*argv) for _ in range(BURNERS)]
    try:
        await asyncio.sleep(deed.for_s)
    finally:
        for burner in burners:
            burner.kill()
            await burner.wait()
    return f"{BURNERS} busy processes"


async def _fill_disk(world: World, deed: Deed) -> str:
    if world.disk is None:
        raise Missing("no small disk")
    await asyncio.to_thread(world.disk.fill)
    await asyncio.sleep(deed.for_s)
    world.disk.empty()
    return "full"


async def _refuse(world: World, deed: Deed) -> str:
    await world.proxy.refuse()
    await asyncio.sleep(deed.for_s)
    await world.proxy.listen()
    return "the port was closed"


async def _hold(world: World, deed: Deed) -> str:
    """Afterwards all that was held arrives, or the connections are reset, as by a router that has forgotten them."""
    forgotten = random.Random(deed.dice).random() < 0.7
    world.proxy.hold()
    await asyncio.sleep(deed.for_s)
    if forgotten:
        world.proxy.reset()
    world.proxy.release()
    return "then a reset" if forgotten else "then all arrived"


async def _hold_answers(world: World, deed: Deed) -> str:
    """The broker gets all and confirms it, and the daemon does not hear of it: it must send all of it again."""
    world.proxy.hold(answers_only=True)
    await asyncio.sleep(deed.for_s)
    world.proxy.reset()
    world.proxy.release()
    return "then a reset"


async def _break(world: World, deed: Deed) -> str:
    """Every connection is reset after a moment, and takes what is on its way with it."""
    dice, before = random.Random(deed.dice), world.proxy.connections
    world.proxy.life_s = lambda: dice.uniform(0.3, 6.0)
    world.proxy.delay_s = dice.uniform(0.02, 0.2)
    world.proxy.reset()
    await asyncio.sleep(deed.for_s)
    world.proxy.life_s, world.proxy.delay_s = None, 0.0
    return f"{world.proxy.connections - before} connections"


async def _delay(world: World, deed: Deed) -> str:
    world.proxy.delay_s = random.Random(deed.dice).uniform(0.05, 0.8)
    await asyncio.sleep(deed.for_s)
    delay_s, world.proxy.delay_s = world.proxy.delay_s, 0.0
    return f"by {delay_s:.2f} s"


async def _tear(world: World, deed: Deed) -> str:
    world.proxy.tear = True
    return "the next bytes by half, then the end"


async def _reset(world: World, deed: Deed) -> str:
    world.proxy.reset()
    return "RST"


async def _move_folder(world: World, deed: Deed) -> str:
    folder = world.folders[deed.source]
    away = folder.with_name(f"{folder.name}-away")
    async with world.feeder.at_rest[deed.source]:
        os.rename(folder, away)
        await asyncio.sleep(deed.for_s)
        os.rename(away, folder)
    return "back again"


DEEDS: dict[str, Callable[[World, Deed], Awaitable[str]]] = {
    "kill the worker": _kill_worker,
    "kill the grabber": _kill_grabber,
    "kill the daemon": _kill_daemon,
    "kill the broker": _kill_broker,
    "freeze the worker": _freeze_worker,
    "freeze the worker too long": _freeze_worker,
    "freeze the grabber": _freeze_grabber,
    "freeze the grabber too long": _freeze_grabber,
    "freeze the broker": _freeze_broker,
    "freeze the broker too long": _freeze_broker,
    "freeze the daemon": _freeze_daemon,
    "starve of memory": _starve_memory,
    "starve of processor time": _starve_processor,
    "fill the disk": _fill_disk,
    "refuse connections": _refuse,
    "hold the network": _hold,
    "hold the answers": _hold_answers,
    "delay the network": _delay,
    "break connections again and again": _break,
    "tear a message": _tear,
    "reset connections": _reset,
    "make the broker forget": _forget,
    "stop and start the daemon": _restart_daemon,
    "damage the outbox": _damage,
    "move the folder away": _move_folder,
}
