"""The whole line: real service, real children, real model, real mosquitto."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.integration.service import BASE, PATIENCE_S, Service, Subscriber, running, subscribed, wait_for

RESULT_SCHEMA = json.loads((Path(__file__).parents[2] / "configs/result.schema.json").read_text())


def drop(service: Service, count: int, seed: int) -> list[tuple[str, str]]:
    """Put drawn pictures into the inbox, whole at once; their names and right captions, in order of age."""
    samples = sample_pictures(service.directory / f"samples-{seed}", count, seed)
    dropped = []
    for number, (path, truth) in enumerate(samples):
        name = f"{seed}-{path.name}"
        os.utime(path, (1_700_000_000 + seed * 1000 + number,) * 2)
        shutil.move(path, service.inbox / name)
        dropped.append((name, truth))
    return dropped


def wait_ready(subscriber: Subscriber) -> None:
    wait_for("health says ok", lambda: (subscriber.last_health() or {}).get("state") == "ok")


def wait_results(subscriber: Subscriber, count: int, topic: str = "inbox/event") -> list[dict[str, Any]]:
    return wait_for(f"{count} results on {topic}", lambda: r if len(r := subscriber.results(topic)) >= count else None)


def test_pictures_become_captions_on_every_promised_topic(
    tmp_path: Path, broker: Broker, subscriber: Subscriber
) -> None:
    questions = [{"id": "count", "ask": "How many shapes are there?"}]
    with running(Service(tmp_path, broker.port, source={"questions": questions})) as service:
        wait_ready(subscriber)
        dropped = drop(service, 3, seed=1)
        results = wait_results(subscriber, 6)
        for result in results:
            jsonschema.validate(result, RESULT_SCHEMA)
        captions = [r for r in results if r["task"] == "caption"]
        assert [(r["file"], r["caption"]) for r in captions] == dropped
        assert [r["seq"] for r in results] == [1, 2, 3, 4, 5, 6]
        assert not any(r["replayed"] for r in results)
        assert all(
            r["answer"].strip(".") in "One Two Three Four 1 2 3 4 one two three four" for r in results if "answer" in r
        )
        wait_for("the outbox is empty", lambda: (subscriber.last_health() or {})["mqtt"]["queued"] == 0)
        assert service.end() == 0
    with subscribed(broker.port) as later:  # what the broker retained, for those who come later
        later.catch_up()
        retained = {m.topic.removeprefix(f"{BASE}/"): m for m in later.messages}
    assert set(retained) == {
        *("availability", "health", "inbox/availability", "inbox/enabled/state"),
        *("inbox/caption", "inbox/caption/text", "inbox/answer/count"),
    }
    assert retained["availability"].payload == retained["inbox/availability"].payload == b"offline"
    assert retained["inbox/caption/text"].payload.decode() == dropped[-1][1]
    assert json.loads(retained["inbox/caption"].payload)["caption"] == dropped[-1][1]
    assert all(m.qos == 1 for m in retained.values())


def test_nothing_is_lost_while_the_broker_is_away_and_the_daemon_is_killed(tmp_path: Path, broker: Broker) -> None:
    with running(Service(tmp_path, broker.port)) as service:
        with subscribed(broker.port) as before:
            wait_ready(before)
        broker.stop()
        dropped = drop(service, 20, seed=2)
        wait_for("20 captions in the log", lambda: service.log().count(" background. (") >= 20)
        service.end(signal.SIGKILL)
        told = service.log().count("cannot be reached")
        service.start()
        wait_for("it starts without a broker", lambda: service.log().count("cannot be reached") > told)
        with subscribed(broker.port) as subscriber:
            assert service.process is not None
            service.process.send_signal(signal.SIGSTOP)  # the subscriber shall be there first: events are not retained
            broker.start()
            assert subscriber.listens.wait(PATIENCE_S)
            service.process.send_signal(signal.SIGCONT)
            wait_results(subscriber, 20)
            wait_for("the outbox is empty", lambda: (h := subscriber.last_health()) and h["mqtt"]["queued"] == 0)
            results = subscriber.results()
    assert [r["file"] for r in results] == [name for name, _ in dropped]
    assert all(r["replayed"] for r in results)
    assert [r["seq"] for r in results] == list(range(1, 21))
    assert len({r["id"] for r in results}) == 20


def test_a_killed_worker_costs_no_picture(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port)) as service:
        wait_ready(subscriber)
        worker = service.child("edge_daemon.worker")
        assert worker is not None
        worker.kill()
        dropped = drop(service, 2, seed=3)
        results = wait_results(subscriber, 2)
        assert [r["file"] for r in results] == [name for name, _ in dropped]
        health = wait_for(
            "the death is told", lambda: (h := subscriber.last_health()) and h["worker"]["restarts"] and h
        )
        assert "was ended by SIGKILL, not by the kernel" in health["worker"]["last_death"]
        assert service.process is not None
        assert service.process.poll() is None


def test_a_killed_grabber_comes_back(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port)) as service:
        wait_ready(subscriber)
        grabber = wait_for("a grabber", lambda: service.child("edge_daemon.grabber"))
        grabber.send_signal(signal.SIGSEGV)
        dropped = drop(service, 1, seed=4)
        assert wait_results(subscriber, 1)[0]["file"] == dropped[0][0]
        source = wait_for(
            "the source is back",
            lambda: (h := subscriber.last_health()) and h["sources"]["inbox"]["problems"] and h["sources"]["inbox"],
        )
        assert "SIGSEGV" in source["last_problem"]["reason"]
        wait_for("online", lambda: subscriber.on("inbox/availability")[-1].payload == b"online")


def test_the_will_is_sent_and_no_child_is_left_when_the_daemon_is_killed(
    tmp_path: Path, broker: Broker, subscriber: Subscriber
) -> None:
    with running(Service(tmp_path, broker.port)) as service:
        wait_ready(subscriber)
        assert service.process is not None
        children = psutil.Process(service.process.pid).children()
        assert len(children) == 2
        service.end(signal.SIGKILL)
        wait_for("the will", lambda: subscriber.on("availability")[-1].payload == b"offline")
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_sigterm_finishes_the_caption_in_flight(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port, log_level="debug")) as service:
        wait_ready(subscriber)
        wait_for("the rehearsal is over", lambda: "a picture takes about" in service.log())
        worker = service.child("edge_daemon.worker")
        assert worker is not None
        worker.suspend()  # the caption is in flight for as long as we like
        drop(service, 1, seed=5)
        wait_for("the picture is with the worker", lambda: ": captioning " in service.log())
        assert service.process is not None
        service.process.terminate()
        wait_for("it stops", lambda: "stopping" in service.log())
        worker.resume()
        assert service.process.wait(30) == 0
        assert len(wait_results(subscriber, 1)) == 1
        assert subscriber.on("availability")[-1].payload == b"offline"


def test_a_file_is_captioned_once_also_over_a_restart(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port)) as service:
        wait_ready(subscriber)
        drop(service, 2, seed=6)
        (service.inbox / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no JPEG")
        wait_for("the problem is told", lambda: (subscriber.last_health() or {})["sources"]["inbox"]["problems"] == 1)
        wait_results(subscriber, 2)
        assert service.end() == 0
        service.start()
        new = drop(service, 1, seed=7)
        assert [r["file"] for r in wait_results(subscriber, 3)[2:]] == [new[0][0]]
        health = wait_for(
            "one captioned", lambda: (h := subscriber.last_health()) and h["sources"]["inbox"]["captioned"] == 1 and h
        )
        assert health["sources"]["inbox"]["problems"] == 0


def test_too_little_memory_is_refused_with_the_missing_amount(
    tmp_path: Path, broker: Broker, subscriber: Subscriber
) -> None:
    with running(Service(tmp_path, broker.port, model={"memory_limit_mib": 64})) as service:
        assert service.process is not None
        assert service.process.wait(60) == 69
        assert "MiB of memory are missing" in service.log()
        health = wait_for(
            "health says failed", lambda: (h := subscriber.last_health()) and h["state"] == "failed" and h
        )
        assert "MiB of memory are missing" in health["worker"]["last_death"]
        assert subscriber.on("availability")[-1].payload == b"offline"


def test_the_kv_cap_follows_the_budget_and_is_published(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port, model={"kv_positions": 150})) as service:
        wait_ready(subscriber)
        drop(service, 1, seed=8)
        assert wait_results(subscriber, 1)[0]["kv_tokens"] == 150
        health = subscriber.last_health()
        assert health is not None
        assert health["model"]["kv_positions"] == 150


def test_a_model_that_is_not_there_is_a_configuration_error(tmp_path: Path, broker: Broker) -> None:
    with running(Service(tmp_path, broker.port, model={"name": "moondream-9000b"})) as service:
        assert service.process is not None
        assert service.process.wait(30) == 78
        assert "moondream-9000b" in service.log()
        assert "demo-shapes" in service.log()


@pytest.mark.parametrize("options", [[], ["--embedded"]], ids=["mosquitto", "embedded"])
def test_the_demo_captions_all_its_pictures(options: list[str]) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "edge_daemon", "demo", "--pictures", "3", "--seed", "1", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.count("✓") == 3, demo.stdout
