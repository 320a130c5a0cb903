"""The whole line on the other engine and in other precisions: real service, real worker, real graphs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.environment import SPIN_COUNT
from edge_daemon.model_files import GRAPHS
from tests.integration.service import Service, Subscriber, running, wait_for
from tests.model.onnx_models import as_graphs

ROOT = Path(__file__).parents[2]
RESULT_SCHEMA = json.loads((ROOT / "configs/result.schema.json").read_text())


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo-shapes as float32 graphs."""
    return as_graphs(MODEL_DIR, tmp_path_factory.mktemp("graphs") / "demo-shapes")


def captioned(service: Service, subscriber: Subscriber, count: int = 2) -> tuple[list[dict[str, Any]], list[str]]:
    """What is said of drawn pictures, and what would be right."""
    samples = sample_pictures(service.directory / "samples", count, 31)
    for path, _ in samples:
        shutil.move(path, service.inbox / path.name)
    results = wait_for("the captions", lambda: r if len(r := subscriber.results()) >= count else None)
    for result in results:
        jsonschema.validate(result, RESULT_SCHEMA)
    by_file = {result["file"]: result for result in results}
    return [by_file[path.name] for path, _ in samples], [truth for _, truth in samples]


def test_the_service_captions_by_onnx_runtime(
    tmp_path: Path, broker: Broker, subscriber: Subscriber, graphs: Path
) -> None:
    with running(Service(tmp_path, broker.port, model={"name": str(graphs), "kv_positions": 150})) as service:
        results, truths = captioned(service, subscriber)
        assert [result["caption"] for result in results] == truths
        assert {(r["engine"], r["precision"], r["kv_tokens"]) for r in results} == {("onnx", "float32", 150)}
        health = subscriber.last_health()
        assert health is not None
        assert (health["model"]["engine"], health["model"]["device"]) == ("onnx", "cpu")
        assert "ONNX Runtime" in health["model"]["reason"]
        assert "onnxruntime" in health["model"]["versions"]
        assert health["model"]["kv_bytes"] == 150 * 4096 // 2, "float16, as the graphs take it"
        assert service.end() == 0


def test_too_little_memory_for_the_graphs_is_refused_with_the_missing_amount(
    tmp_path: Path, broker: Broker, graphs: Path
) -> None:
    model = {"name": str(graphs), "memory_limit_mib": 64}
    with running(Service(tmp_path, broker.port, model=model)) as service:
        assert service.process is not None
        assert service.process.wait(60) == 69
        assert "MiB of memory are missing" in service.log()


def test_a_damaged_graph_is_a_configuration_error(tmp_path: Path, broker: Broker, graphs: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(graphs, broken)
    path = broken / GRAPHS / "vision_encoder.onnx"
    path.write_bytes(path.read_bytes()[:2000])
    with running(Service(tmp_path, broker.port, model={"name": str(broken)})) as service:
        assert service.process is not None
        assert service.process.wait(60) == 78
        assert f"{path}: not a graph that ONNX Runtime can run" in service.log()


def test_a_device_that_is_not_there_is_a_configuration_error(tmp_path: Path, broker: Broker) -> None:
    with running(Service(tmp_path, broker.port, model={"device": "mps"})) as service:
        assert service.process is not None
        assert service.process.wait(60) == 78
        assert "device mps: torch finds none on this machine" in service.log()


def test_a_precision_that_was_asked_for_is_used_and_told(
    tmp_path: Path, broker: Broker, subscriber: Subscriber
) -> None:
    with running(Service(tmp_path, broker.port, model={"precision": "bfloat16"})) as service:
        results, _ = captioned(service, subscriber, 1)
        assert (results[0]["engine"], results[0]["precision"]) == ("torch", "bfloat16")
        health = subscriber.last_health()
        assert health is not None
        assert health["model"]["precision"] == "bfloat16"
        assert health["model"]["kv_bytes"] == health["model"]["kv_positions"] * 4096 // 2
        assert "bfloat16 was asked for" in health["model"]["reason"]


def test_int8_that_was_asked_for_is_used_and_told(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    model = {"precision": "int8"}
    with running(Service(tmp_path, broker.port, model=model)) as service:
        results, truths = captioned(service, subscriber)
        assert {(r["engine"], r["precision"]) for r in results} == {("torch", "int8")}
        assert sum(r["caption"] == truth for r, truth in zip(results, truths, strict=True)) >= 1
        health = subscriber.last_health()
        assert health is not None
        assert (health["model"]["precision"], health["model"]["device"]) == ("int8", "cpu")
        assert health["model"]["reason"] == "int8 runs on the CPU; int8 was asked for"
        assert health["model"]["kv_bytes"] < health["model"]["kv_positions"] * 4096


def test_the_reason_for_float32_has_the_numbers(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    with running(Service(tmp_path, broker.port, model={"memory_limit_mib": 900})) as service:
        wait_for("health says ok", lambda: (subscriber.last_health() or {}).get("state") == "ok")
        health = subscriber.last_health()
        assert health is not None
        told = r"float32 needs \d+ MiB, the budget is 900 MiB \(model\.memory_limit_mib\): float32"
        assert re.search(told, health["model"]["reason"])
        assert re.search(told, service.log())
        assert health["model"]["release_vision"] is False


def test_the_service_learns_what_a_picture_takes_before_there_is_one(
    tmp_path: Path, broker: Broker, subscriber: Subscriber
) -> None:
    def learnt() -> dict[str, Any] | None:
        health = subscriber.last_health()
        return health if health and health["worker"]["self_benchmark"] else None

    with running(Service(tmp_path, broker.port)) as service:
        health = wait_for("the self-benchmark", learnt)
        assert health["worker"]["expected_interval_s"] > 0
        assert health["worker"]["silence_limit_s"] >= 60
        assert health["worker"]["self_benchmark"].keys() == {"encode_s", "prefill_s", "token_s"}
        assert health["sources"]["inbox"]["captioned"] == 0
        assert subscriber.results() == [], "nothing of it is published"
        assert "a picture takes about" in service.log()
        captioned(service, subscriber, 1)
        assert service.end() == 0


def test_the_variant_that_fits_is_run_and_told(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    """demo-shapes stands for the 0.5B in a store that has nothing else."""
    shutil.copytree(MODEL_DIR, tmp_path / "state" / "models" / "moondream-0.5b")
    with running(Service(tmp_path, broker.port, model={"name": "moondream"})) as service:
        wait_for("health says ok", lambda: (subscriber.last_health() or {}).get("state") == "ok")
        health = subscriber.last_health()
        assert health is not None
        assert health["model"]["variant_reason"].startswith("moondream-0.5b: moondream-0.5b needs ")
        assert health["model"]["variant_reason"] in service.log()


def test_the_command_in_int8(tmp_path: Path) -> None:
    ((picture, _),) = sample_pictures(tmp_path, 1, 5)
    argv = [sys.executable, "-m", "edge_daemon", "caption", str(picture), "--json", "--precision", "int8"]
    document = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert (document["engine"], document["device"], document["precision"]) == ("torch", "cpu", "int8")
    assert document["caption"]
    refused = subprocess.run([*argv, "--device", "cuda"], capture_output=True, text=True, check=False)
    assert refused.returncode == 69
    assert "device cuda" in refused.stderr


def test_the_command_obeys_no_name_of_a_file(tmp_path: Path) -> None:
    """A terminal would do what stands in the first; the second cannot be printed as it is."""
    ((picture, truth),) = sample_pictures(tmp_path, 1, 5)
    there, broken = tmp_path / "a\x1b]0;b\x07.png", tmp_path / "\udcff\n.png"
    picture.rename(there)
    broken.write_text("no picture")
    argv = [sys.executable, "-m", "edge_daemon", "caption", str(there), str(broken)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    assert said[0] == f"{str(there)!r}: {truth}"
    assert said[-1] == f"{str(broken)!r}: not a picture: it is text"


@pytest.mark.parametrize("options", [["--cpu"], ["--device", "cpu", "--precision", "bfloat16"]])
def test_the_command_says_where_and_how(tmp_path: Path, options: list[str]) -> None:
    ((picture, truth),) = sample_pictures(tmp_path, 1, 5)
    argv = [sys.executable, "-m", "edge_daemon", "caption", str(picture), "--json", *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["caption"] == truth
    assert (document["engine"], document["device"]) == ("torch", "cpu")
    assert document["precision"] == ("bfloat16" if "bfloat16" in options else "float32")


def test_the_command_runs_graphs_too(tmp_path: Path, graphs: Path) -> None:
    ((picture, truth),) = sample_pictures(tmp_path, 1, 5)
    argv = [sys.executable, "-m", "edge_daemon", "caption", str(picture), "--model", str(graphs), "--json"]
    document = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert (document["caption"], document["engine"], document["precision"]) == (truth, "onnx", "float32")
    refused = subprocess.run([*argv, "--precision", "float16"], capture_output=True, text=True, check=False)
    assert refused.returncode == 69
    assert "precision float16: this model is run by ONNX Runtime" in refused.stderr


# -- what a worker loads

LOADED = """\
import argparse, json, sys, time
from pathlib import Path
from edge_daemon import worker
from edge_daemon.moondream.generate import Sampling
from PIL import Image

sys.argv = ["worker", "--model", sys.argv[1], "--budget-bytes", str(4 << 30), "--budget-reason", "a test"]
serving, report = worker.load(worker.parse(), time.monotonic())
model = serving.model
model.encode(Image.new("RGB", (512, 384)))
model.caption("short", Sampling(8))
model.query("How many shapes are there?", Sampling(8))
model.detect("circle")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_worker_loads_only_what_its_engine_needs(graphs: Path, engine: str) -> None:
    directory = MODEL_DIR if engine == "torch" else graphs
    done = subprocess.run([sys.executable, "-c", LOADED, str(directory)], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"torch", "tokenizers"} <= loaded
    assert not {"transformers", "huggingface_hub", "onnx", "pyvips", "paho"} & loaded
    assert ("onnxruntime" in loaded) == (engine == "onnx")


def test_the_runtime_keeps_what_it_is_used_for_to_itself(graphs: Path, tmp_path: Path) -> None:
    """ONNX Runtime keeps a device's number and a database of events for its makers in the user's cache."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 48)).save(picture)
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    home.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-m", "edge_daemon", "caption", "--model", str(graphs), str(picture)]
    subprocess.run(command, env=home, check=True, capture_output=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["picture.png"]


def test_threads_wait_for_each_other_briefly_in_every_command(tmp_path: Path) -> None:
    """A caption by hand must not take the cores from the service beside it; OpenMP says what it was told."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 48)).save(picture)
    home = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    home.pop("GOMP_SPINCOUNT", None)
    command = [sys.executable, "-m", "edge_daemon", "caption", str(picture)]
    done = subprocess.run(command, env=home, check=True, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr
