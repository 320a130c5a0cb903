"""The demo: a real broker, the real service on a folder, sample pictures, and what a subscriber receives."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_daemon.demo import scenes
from edge_daemon.demo.broker import Broker
from edge_daemon.errors import UnavailableError

READY_S = 120.0
CAPTION_S = 60.0
STOP_S = 30.0
TOPIC = "edge-daemon/demo"
CONFIG = """\
node: demo
state_dir: {state}
mqtt:
  port: {port}
  protocol: "{protocol}"
model:
  name: demo-shapes
sources:
  inbox:
    type: folder
    path: {inbox}
    settle_s: 0.2
    caption: short
"""
Messages = queue.Queue[tuple[str, bytes]]


def run(pictures: int, seed: int, *, as_json: bool, embedded: bool) -> None:
    """Show it. Raises UnavailableError when something is missing, or a picture gets no caption in time."""
    with tempfile.TemporaryDirectory(prefix="edge-daemon-demo-") as name:
        directory = Path(name)
        inbox = directory / "inbox"
        inbox.mkdir()
        (directory / "broker").mkdir()
        samples = scenes.sample_pictures(directory / "samples", pictures, seed)
        with Broker(directory / "broker", embedded=embedded) as broker:
            say = (lambda text: None) if as_json else print
            say(f"broker: {broker.name} on 127.0.0.1:{broker.port}")
            with subscriber(broker.port) as messages, service(directory, broker):
                say(f"service: started; waiting for the model …   (mosquitto_sub -p {broker.port} -v -t '{TOPIC}/#')")
                wait_until_ok(messages, directory / "service.log")
                say(f"topic: {TOPIC}/inbox/caption\n")
                right = [show(sample, inbox, messages, as_json) for sample in samples]
            say(f"\n{len(right)} pictures captioned, {sum(right)} as they were drawn")
            say("note: demo-shapes knows coloured shapes on plain backgrounds and nothing else")


@contextmanager
def service(directory: Path, broker: Broker) -> Iterator[subprocess.Popen[bytes]]:
    """The real service, as its own process."""
    config = directory / "config.yaml"
    places = {"state": directory / "state", "inbox": directory / "inbox"}
    config.write_text(CONFIG.format(port=broker.port, protocol=broker.protocol, **places))
    with (directory / "service.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-P", "-m", "edge_daemon", "run", "-c", str(config)], stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def subscriber(port: int) -> Iterator[Messages]:
    """Everything below our topic, as it arrives."""
    messages: Messages = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe(f"{TOPIC}/#", qos=1)
    client.on_message = lambda _c, _u, message: messages.put((message.topic, bytes(message.payload)))
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield messages
    finally:
        client.disconnect()
        client.loop_stop()


def wait_until_ok(messages: Messages, log: Path) -> None:
    """Until health says ok. Raises UnavailableError with the service's own words."""
    for topic, payload in until(messages, READY_S):
        if topic.endswith("/health"):
            state = json.loads(payload)["state"]
            if state == "ok":
                return
            if state == "failed":
                break
    raise UnavailableError(f"the service did not become ready; its log:\n{log.read_text(errors='replace')[-2000:]}")


def show(sample: tuple[Path, str], inbox: Path, messages: Messages, as_json: bool) -> bool:
    """Drop one picture in and print what comes; True when the words are right.

    Raises UnavailableError when nothing comes.
    """
    picture, truth = sample
    dropped_s = time.monotonic()
    shutil.move(picture, inbox / picture.name)
    for topic, payload in until(messages, CAPTION_S):
        if topic == f"{TOPIC}/inbox/caption":
            result: dict[str, Any] = json.loads(payload)
            after_s = time.monotonic() - dropped_s
            print(json.dumps(result) if as_json else in_words(result, truth, after_s), flush=True)
            return bool(result["caption"] == truth)
    raise UnavailableError(f"no caption of {picture.name} within {CAPTION_S:.0f} s")


def in_words(result: dict[str, Any], truth: str, after_s: float) -> str:
    """One received result for people."""
    ms = result["latency_ms"]
    mark = "✓" if result["caption"] == truth else f"✗ drawn: {truth}"
    times = ", ".join(f"{stage} {ms[stage]:.0f}" for stage in ("decode", "encode", "prefill", "generate"))
    return f"{result['file']}  {result['caption']}  {mark}\n    {times} ms; {after_s:.1f} s after it was dropped in"


def until(messages: Messages, timeout_s: float) -> Iterator[tuple[str, bytes]]:
    """Messages that arrive within the time."""
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            yield messages.get(timeout=left_s)
        except queue.Empty:
            return
