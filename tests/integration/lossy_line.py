"""A line that loses packets: `python -m tests.integration.lossy_line DIRECTORY`, in namespaces of its own.

    client ── v0 ─ v1 ── relay ── v2 ─ v3 ── broker

The kernel's own ways to lose packets (netem, nftables) are missing on many machines; a program between two network
devices that passes on some of the frames, and counts, needs nothing. TCP sees what it would see on a bad radio link.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from edge_daemon import suspicion, visit
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outbox import Outbox
from edge_daemon.publisher import Publisher
from edge_daemon.topics import Topics

RESULTS, LOSS = 40, 0.3
PORT, CLIENT, BROKER = 1883, "10.99.0.1", "10.99.0.2"
TOPICS = Topics("edge-daemon", "test")
SETUP = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
ip netns add broker
ip netns add middle
ip link add v0 type veth peer name v1 netns middle
ip -n middle link add v2 type veth peer name v3 netns broker
ip addr add {CLIENT}/24 dev v0
ip -n broker addr add {BROKER}/24 dev v3
ip link set lo up
ip link set v0 up
ip -n middle link set v1 up
ip -n middle link set v2 up
ip -n broker link set v3 up
ip -n broker link set lo up
"""
SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL, PACKET_OUTGOING = 263, 15, 3, 4
"""The header keeps what a network card would still have to do, such as checksums, with the frame."""


def main() -> None:
    """Set it up and let results pass; what arrived, and what was lost on the way, lies in the directory afterwards."""
    directory = Path(sys.argv[1])
    subprocess.run(["sh", "-c", SETUP], check=True)
    conf = directory / "mosquitto.conf"
    conf.write_text(f"listener {PORT} {BROKER}\nallow_anonymous true\nuser root\nmax_queued_messages 0\n")
    inside = ["ip", "netns", "exec"]
    watch = ["mosquitto_sub", "-h", BROKER, "-q", "1", "-i", "watch", "-c", "-t", TOPICS.of("porch", "event")]
    ours = [sys.executable, "-m", "tests.integration.lossy_line", str(directory)]
    with subprocess.Popen([*inside, "broker", "mosquitto", "-c", str(conf)]) as broker:
        while subprocess.run([*inside, "broker", *watch, "-E"], check=False).returncode:
            time.sleep(0.1)
        with (
            (directory / "arrived").open("wb") as arrived,
            subprocess.Popen([*inside, "broker", *watch], stdout=arrived) as watcher,
            subprocess.Popen([*inside, "middle", *ours, "relay"]) as relaying,
        ):
            subprocess.run([*ours, "client"], check=True)
            time.sleep(0.5)  # the watcher is on the broker's side, where nothing is lost
            for process in (relaying, watcher, broker):
                process.terminate()


def relay(directory: Path) -> None:
    """Pass on what is not lost; nothing at all while there is a file named `cut`. Counts in `lost`."""
    chance, lost = random.Random(6), 0
    ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) for _ in range(2)]
    for end, device in zip(ends, ("v1", "v2"), strict=True):
        end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        end.bind((device, 0))
    while True:
        for end in select.select(ends, [], [])[0]:
            frame, address = end.recvfrom(1 << 17)
            if address[2] == PACKET_OUTGOING:
                continue
            if chance.random() < LOSS or (directory / "cut").exists():
                lost += 1
                (directory / "lost").write_text(str(lost))
            else:
                ends[end is ends[0]].send(frame)


async def client(directory: Path) -> None:
    """Results while packets are lost; then a cut until it is noticed; then more of both."""
    visit.ANSWER_S, suspicion.LONGEST_DELAY_S = 3.0, 1
    outbox, written = Outbox(directory / "outbox.db"), asyncio.Event()
    connection = Connection(MqttConfig(host=BROKER, port=PORT), TOPICS, lambda: None)
    connection.start()
    task = asyncio.create_task(Publisher(outbox, connection, written, lambda: None, 0.2).run())
    for number in range(RESULTS):
        outbox.put("porch", [{"id": f"r{number}", "task": "caption", "caption": "A red circle."}], None)
        written.set()
        await asyncio.sleep(0.02)
        if number == RESULTS // 2:
            await connection.connected.wait()
            (directory / "cut").touch()
            while connection.connected.is_set():
                await asyncio.sleep(0.05)
            (directory / "cut").unlink()
    while len(outbox):
        await asyncio.sleep(0.05)
    (directory / "report.json").write_text(
        json.dumps({"sessions": connection.sessions, "refused": connection.complaints.refused})
    )
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await connection.stop()
    outbox.close()


if __name__ == "__main__":
    if sys.argv[2:] == ["relay"]:
        relay(Path(sys.argv[1]))
    elif sys.argv[2:] == ["client"]:
        asyncio.run(client(Path(sys.argv[1])))
    else:
        main()
