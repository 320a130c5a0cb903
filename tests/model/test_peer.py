"""The only other program that runs a moonfile, moondream 0.0.6, says the same as we do about the same weights.

It lives in an environment of its own, `.venv-peer` beside the sources, which is made once.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.questions import random_question
from edge_daemon.demo.scenes import draw, random_scene
from edge_daemon.models.export import export
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream
from tests.conftest import missing

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peer"
CLIENT = "0.0.6"
SCENES, MAX_TOKENS = 10, 64
SIZES = ((512, 384), (773, 767))
"""One crop, and four of five. Width × height in pixels."""
SPOKEN = ("short", "normal", "answer")
INT8_AGREEMENT = 0.9
"""Of answers, token for token; 59 or 60 of 60 when it was measured. Each activation has 256 levels only there."""
LOGITS_CORRELATION = 0.999


@dataclass(frozen=True)
class Client:
    """The peer's Python."""

    python: Path

    def look(self, model: Path, pictures: list[dict[str, str]], max_tokens: int) -> tuple[Any, NDArray[np.float32]]:
        """What it says about each picture (tests/model/peer.py), and the first logits of each short caption."""
        logits = model.with_name("logits.npy")
        request = {"model": str(model), "max_tokens": max_tokens, "logits": str(logits), "pictures": pictures}
        command = [self.python, Path(__file__).with_name("peer.py")]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), np.load(logits)


@pytest.fixture(scope="session")
def client() -> Client:
    """The client, installed by pip unless it is there."""
    python = ENVIRONMENT / "bin" / "python"
    if not is_the_client(python):
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", f"moondream=={CLIENT}"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode or not is_the_client(python):
            missing(f"moondream {CLIENT} ({done.stderr.strip()[-300:]})")
    return Client(python)


def is_the_client(python: Path) -> bool:
    ask = f"import moondream, importlib.metadata as m; assert m.version('moondream') == '{CLIENT}'"
    return python.exists() and subprocess.run([python, "-c", ask], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """SCENES scenes at both sizes, each with a question and something to find."""
    directory, rng, found = tmp_path_factory.mktemp("pictures"), random.Random(3), []
    for index in range(SCENES):
        scene = random_scene(rng)
        question, target = random_question(scene, rng).text, rng.choice(scene.objects).shape
        for width, height in SIZES:
            path = directory / f"{index}-{width}x{height}.png"
            draw(scene, (width, height)).save(path)
            found.append({"path": str(path), "question": question, "target": target})
    return found


@pytest.fixture(scope="module")
def ours(pictures: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What we say, in the peer's form."""
    model = Moondream(MODEL_DIR)
    return [look(model, picture) for picture in pictures]


def look(model: Moondream, picture: dict[str, str]) -> dict[str, Any]:
    said: list[int] = []
    answers: dict[str, Any] = {}
    model.encode(Image.open(picture["path"]))
    sampling = Sampling(max_tokens=MAX_TOKENS)
    for task in SPOKEN:
        said = []
        if task == "answer":
            answer = model.query(picture["question"], sampling, said.append)
        else:
            answer = model.caption(task, sampling, said.append)
        assert answer.finish_reason == "eos", "the client knows no other end, so all of it can be compared"
        answers[task] = said
    answers["boxes"] = [asdict(box) for box in model.detect(picture["target"])]
    answers["question"] = model.tokenizer.encode(picture["question"])
    answers["target"] = model.tokenizer.encode(f" {picture['target']}")
    return answers


def test_in_float32_every_token_and_box_is_the_clients(
    client: Client, pictures: list[dict[str, str]], ours: list[dict[str, Any]], tmp_path: Path
) -> None:
    export(MODEL_DIR, tmp_path / "demo.mf", "moonfile", "float32")
    theirs, _ = client.look(tmp_path / "demo.mf", pictures, MAX_TOKENS)
    assert theirs == ours
    assert sum(len(answer["boxes"]) for answer in ours) >= SCENES, "there are boxes to compare"
    assert len({tuple(answer["short"]) for answer in ours}) > SCENES / 2, "the pictures differ, and so do the captions"


def test_in_int8_the_client_says_nearly_the_same(
    client: Client, pictures: list[dict[str, str]], ours: list[dict[str, Any]], tmp_path: Path
) -> None:
    export(MODEL_DIR, tmp_path / "demo.mf.gz", "moonfile", "int8")
    theirs, _ = client.look(tmp_path / "demo.mf.gz", pictures, MAX_TOKENS)
    pairs = [(mine[task], other[task]) for mine, other in zip(ours, theirs, strict=True) for task in SPOKEN]
    equal = sum(mine == other for mine, other in pairs)
    print(f"\nint8 in the client against float32 here: {equal} of {len(pairs)} answers are equal")
    assert equal >= INT8_AGREEMENT * len(pairs)


@pytest.fixture
def large_moonfile(half_billion: Path, tmp_path: Path) -> Iterator[Path]:
    """The 0.5B shape with random weights in int8, 656 MiB."""
    path = tmp_path / "half-billion.mf"
    export(half_billion, path, "moonfile", "int8")
    yield path
    path.unlink()


def test_half_a_billion_in_int8_speaks_first_as_we_do(
    client: Client, half_billion: Path, large_moonfile: Path, pictures: list[dict[str, str]]
) -> None:
    """Random weights in the published shape: 51 blocks of int8 in the client, of float32 here."""
    assert 650 << 20 < large_moonfile.stat().st_size < 670 << 20, "as large as the official file (660.7 MiB)"
    _, (theirs,) = client.look(large_moonfile, pictures[:1], max_tokens=1)
    model = Moondream(half_billion, kv_positions=760)
    model.encode(Image.open(pictures[0]["path"]))
    with torch.inference_mode():
        mine = model._prompt(model.config.templates.caption["short"]).logits.numpy()
    correlation = float(np.corrcoef(mine, theirs)[0, 1])
    print(f"\nfirst logits, int8 in the client against float32 here: correlation {correlation:.5f}")
    assert mine.std() > 0.5
    assert correlation >= LOGITS_CORRELATION
