"""The peer, moondream 0.0.6, against us and against the plain formulation, picture by picture in one run.

Four processes stay open and take turns, one picture each, so that a busy moment of the machine meets all of them and
only one computes at a time. What is compared are the ratios of one picture; a table, and the last line is JSON.

    python -m tests.bench.compare                                   random weights in the 0.5B shape; 6 GB of disk
    python -m tests.bench.compare --directory DIR --moonfile FILE   the same weights, as they were made before

DIR must hold the numbers of the moonfile's 8-bit weights, as `edge-daemon model import` makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from edge_daemon.bench import machine
from edge_daemon.bench.random_model import SHAPES, write_random
from edge_daemon.environment import WORKER
from edge_daemon.models.export import export
from edge_daemon.models.graphs import quantized
from edge_daemon.models.tensor_file import TensorFile
from edge_daemon.moondream.config import load_config
from edge_daemon.scratch import scratch

ROOT = Path(__file__).parents[2]
PEER_PYTHON = ROOT / ".venv-peer" / "bin" / "python"
"""Made by tests/model/test_peer.py."""
OURS = "tests.bench.ours"
SIZE_PX = (512, 384)
DAEMON_BYTES = 45 << 20
"""Our other process, which has no part in a caption; the peer has none."""
MEASURES = ("encode_s", "first_s", "token_s", "total_s")
WORDS = {"encode_s": "encode", "first_s": "first token", "token_s": "each token", "total_s": "end to end"}
PAIRS = (("peer", "int8"), ("peer", "float32"), ("plain", "float32"), ("float32", "int8"))
"""Slower, faster: how many times as fast the second is."""


class Side:
    """One open process, which captions when it is asked."""

    def __init__(self, name: str, command: list[str | Path]) -> None:
        """`command` is a Python, a module and its arguments; our own has what the daemon gives its worker."""
        self.name = name
        argv = [command[0], "-m", *command[1:]]
        given = {**WORKER, **os.environ} if command[1] == OURS else None
        self._process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given
        )
        self.ready = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def caption(self, picture: Path, tokens: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"picture": str(picture), "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer | {"token_s": statistics.median(answer["token_s"]), "every_token_s": answer["token_s"]}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: the process ended with {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def lattice(original: Path, directory: Path) -> None:
    """The model directory that an import of the original's int8 moonfile makes: matrices as they are in 8 bits."""
    with safe_open(original / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no mapping
        with TensorFile(directory / "model.safetensors", {n: ("F32", s) for n, s in shapes.items()}) as out:
            for name in shapes:
                out.write(name, _as_published(name, file.get_tensor(name)))
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(original / name, directory / name)


def _as_published(name: str, tensor: Tensor) -> Tensor:
    if tensor.dim() == 2 and name.endswith(".weight"):
        levels, scale, zero = quantized(tensor.numpy())
        return (torch.from_numpy(levels.T.astype("float32")) - float(zero)) * float(scale)
    return tensor.half().float() if name in ("text.wte", "text.bos_kv") else tensor


@contextmanager
def material(arguments: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The model directory and the moonfile."""
    if arguments.directory is not None:
        yield arguments.directory, arguments.moonfile
        return
    with tempfile.TemporaryDirectory(prefix="edge-daemon-compare-", dir=scratch()) as name:
        original, directory, moonfile = Path(name) / "original", Path(name) / "lattice", Path(name) / "model.mf"
        original.mkdir()
        directory.mkdir()
        print(f"making random weights, a moonfile and what is imported from it in {name} …", file=sys.stderr)
        write_random(original, SHAPES["0.5b"], seed=5)
        export(original, moonfile, "moonfile", "int8")
        lattice(original, directory)
        shutil.rmtree(original)
        yield directory, moonfile


def compare(directory: Path, moonfile: Path, pictures: int, tokens: int) -> dict[str, Any]:
    """The document."""
    with ExitStack() as stack:
        opened = {
            "peer": (PEER_PYTHON, "tests.bench.peer", moonfile),
            "float32": (sys.executable, OURS, directory, "float32"),
            "int8": (sys.executable, OURS, directory, "int8"),
            "plain": (sys.executable, "tests.bench.plain", directory),
        }
        sides = [stack.enter_context(Side(name, [*command])) for name, command in opened.items()]
        scratch_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        for index in range(-1, pictures):  # the first one warms up
            picture = scratch_dir / f"{index}.png"
            noise = np.random.default_rng(index + 1).integers(0, 256, (*SIZE_PX[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(picture)
            for side in sides[index % len(sides) :] + sides[: index % len(sides)]:  # nobody always follows the same
                answer = side.caption(picture, tokens)
                if index >= 0:
                    answers[side.name].append(answer)
            print(f"picture {index + 1} of {pictures} …", file=sys.stderr)
        ready = {side.name: side.ready["ready"] for side in sides}
    return document(answers, load_config(directory).name, tokens) | {"sides": ready}


def document(answers: dict[str, list[dict[str, Any]]], model: str, tokens: int) -> dict[str, Any]:
    """Medians of each side, medians of the ratios of each picture with their spread, memory, tokens."""
    return {
        "schema": 1,
        **machine.describe(),
        "model": model,
        "pictures": len(answers["peer"]),
        "size_px": SIZE_PX,
        "tokens": tokens,
        "seconds": {
            name: {measure: round(statistics.median(a[measure] for a in given), 5) for measure in MEASURES}
            for name, given in answers.items()
        },
        "times_as_fast": {
            f"{fast} than {slow}": {m: _ratio(answers[slow], answers[fast], m, tokens) for m in MEASURES}
            for slow, fast in PAIRS
        },
        "peak_rss_bytes": {name: max(a["peak_rss_bytes"] for a in given) for name, given in answers.items()},
        "daemon_rss_bytes": DAEMON_BYTES,
        "same_tokens": {
            f"{one} and {other}": _same(answers[one], answers[other])
            for one, other in (("float32", "plain"), ("float32", "int8"), ("float32", "peer"), ("int8", "peer"))
        },
    }


def _ratio(slow: list[dict[str, Any]], fast: list[dict[str, Any]], measure: str, tokens: int) -> dict[str, float]:
    """Of the same picture. The client may end earlier, at its end token: end to end, such a picture does not count."""
    pairs = [
        (s, f)
        for s, f in zip(slow, fast, strict=True)
        if measure != "total_s" or len(s["tokens"]) == len(f["tokens"]) == tokens
    ]
    ratios = [s[measure] / f[measure] for s, f in pairs]
    values = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)} if ratios else {}
    return {key: round(value, 3) for key, value in values.items()} | {"pictures": len(ratios)}


def _same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Share of tokens that are equal up to the first that is not."""
    equal = total = 0
    for mine, theirs in zip(one, other, strict=True):
        total += len(mine["tokens"])
        for a, b in zip(mine["tokens"], theirs["tokens"], strict=False):
            if a != b:
                break
            equal += 1
    return round(equal / total, 4)


def table(said: dict[str, Any]) -> str:
    """The document for people."""
    head = "".join(f"{WORDS[measure]:>22}" for measure in MEASURES)
    lines = [
        f"{said['model']}, {said['machine']['cpu']}, {said['pictures']} pictures of {SIZE_PX[0]}×{SIZE_PX[1]}, "
        f"{said['tokens']} tokens each, in turn",
        "",
        f"{'median seconds':24}{head}{'peak MiB':>12}",
    ]
    for name, seconds in said["seconds"].items():
        peak_mib = said["peak_rss_bytes"][name] / 2**20
        lines.append(f"{name:24}{''.join(f'{seconds[m]:>22.4f}' for m in MEASURES)}{peak_mib:>12.0f}")
    lines += ["", f"{'times as fast':24}{head}"]
    for pair, ratios in said["times_as_fast"].items():
        lines.append(f"{pair:24}{''.join(f'{_in_words(ratios[m]):>22}' for m in MEASURES)}")
    lines += ["", f"ours, beside the worker: the daemon, {said['daemon_rss_bytes'] / 2**20:.0f} MiB"]
    lines += [f"same tokens, {pair}: {share:.1%}" for pair, share in said["same_tokens"].items()]
    return "\n".join(lines)


def _in_words(ratio: dict[str, float]) -> str:
    if not ratio["pictures"]:
        return "none to compare"
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}…{ratio['most']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, metavar="DIR", help="a model directory")
    parser.add_argument("--moonfile", type=Path, metavar="FILE", help="the moonfile of the same weights")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="default: 20")
    arguments = parser.parse_args()
    if (arguments.directory is None) != (arguments.moonfile is None):
        parser.error("--directory and --moonfile go together")
    if arguments.pictures < 1 or arguments.tokens < 2:
        parser.error("one picture and two tokens are the least")
    if not PEER_PYTHON.exists():
        sys.exit(f"{PEER_PYTHON} is not there: tests/model/test_peer.py makes it")
    with material(arguments) as (directory, moonfile):
        said = compare(directory, moonfile, arguments.pictures, arguments.tokens)
    print(table(said), end="\n\n")
    print(json.dumps(said, separators=(",", ":")))
    if said["same_tokens"]["float32 and plain"] != 1:
        sys.exit("float32 and the plain formulation do not say the same")


if __name__ == "__main__":
    main()
