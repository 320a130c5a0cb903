"""What was measured, as one document (schema 1) and as a table for people."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

from edge_daemon.bench import arithmetic, machine
from edge_daemon.bench.arithmetic import WEIGHT_BYTES, Work
from edge_daemon.bench.measure import Bounds, Measured
from edge_daemon.bench.stages import Run
from edge_daemon.units import MIB

SCHEMA = 1
NAMES = {
    "decode": "decode, shrink",
    "vision": "vision",
    "projection": "projection",
    "prefill": "prefill",
    "first_token": "first token",
    "token": "each token",
    "total": "total",
}


@dataclass(frozen=True)
class Stage:
    """One line of the table."""

    seconds: list[float]
    work: Work | None
    """Of one of them; None where it is not the model's, or nobody knows."""


def stages_of(measured: Measured) -> dict[str, Stage]:
    """Every stage, by its name in the document. Of what lies inside of graphs the configuration knows nothing."""
    runs, works = measured.runs, _works(measured) if measured.config.engine == "torch" else {}
    seconds = {
        "decode": [run.decode_s for run in runs],
        "vision": [run.vision_s for run in runs],
        "projection": [run.projection_s for run in runs],
        "prefill": [run.prefill_s for run in runs],
        "first_token": [run.first_s for run in runs],
        "token": [token.seconds for run in runs for token in run.tokens[1:]],
        "total": [run.total_s for run in runs],
    }
    return {name: Stage(taken_s, works.get(name)) for name, taken_s in seconds.items()}


def _works(measured: Measured) -> dict[str, Work]:
    config, runs = measured.config, measured.runs
    behind = config.prefix_positions + measured.prompt
    count = len(runs[0].tokens) - 1
    vision = arithmetic.vision(config, runs[0].crops)
    projection, prefill = arithmetic.projection(config), arithmetic.prefill(config, measured.prompt)
    head = arithmetic.head(config)
    tokens = [arithmetic.token(config, behind + index) for index in range(count)]
    total = reduce(add, tokens, vision + projection + prefill + head)
    parts = {"vision": vision, "projection": projection, "prefill": prefill}
    return parts | {"first_token": head, "token": tokens[count // 2], "total": total}


def document(measured: Measured, model: dict[str, Any]) -> dict[str, Any]:
    """The document; `model` says where it came from."""
    weight_bytes = WEIGHT_BYTES[measured.precision]
    position_bytes = measured.kv_bytes // measured.kv_positions
    stages = {name: _stage(stage, weight_bytes, position_bytes) for name, stage in stages_of(measured).items()}
    return {
        "schema": SCHEMA,
        **machine.describe(),
        "threads": measured.threads,
        "model": model | {"name": measured.config.name, "engine": measured.config.engine},
        "precision": measured.precision,
        "runs": len(measured.runs),
        "crops": measured.runs[0].crops,
        "prompt_tokens": measured.prompt,
        "tokens": len(measured.runs[0].tokens),
        "limits": {"gemm_gflops": _limit(measured.gemm), "read_gbps": _limit(measured.read)},
        "stages": stages,
        "of_the_limits": _shares(measured, stages),
        "load_s": round(measured.load_s, 4),
        "peak_rss_bytes": measured.peak_rss_bytes,
        "kv_positions": measured.kv_positions,
        "kv_bytes": measured.kv_bytes,
    }


def _shares(measured: Measured, stages: dict[str, Any]) -> dict[str, float]:
    """Of the best that the machine showed: the median, and the best, as limits are the best of many, too.

    Nothing where the work is not known.
    """
    if "flops" not in stages["total"]:
        return {}
    gemm, read = measured.gemm.both.best, measured.read.both.best
    gflop = sum(stages[name]["flops"] for name in ("vision", "projection", "prefill")) * 1e-9
    gigabytes = stages["token"]["bytes"] * 1e-9
    taken_s = [_before_the_first_word_s(run) for run in measured.runs]
    shares = {
        "vision_and_prefill": gflop / statistics.median(taken_s) / gemm,
        "vision_and_prefill_best": gflop / min(taken_s) / gemm,
        "token": gigabytes / stages["token"]["median_s"] / read,
        "token_best": gigabytes / stages["token"]["least_s"] / read,
    }
    return {name: round(share, 4) for name, share in shares.items()}


def _before_the_first_word_s(run: Run) -> float:
    return run.vision_s + run.projection_s + run.prefill_s


def _limit(bounds: Bounds) -> dict[str, Any]:
    """Best, what did it, median and least of the same, and the best of each measurement."""
    said = asdict(bounds.both) | {"before": bounds.before.best, "after": bounds.after.best}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in said.items()}


def _stage(stage: Stage, weight_bytes: float, position_bytes: int) -> dict[str, Any]:
    median_s = statistics.median(stage.seconds)
    said: dict[str, Any] = {
        "median_s": round(median_s, 6),
        "least_s": round(min(stage.seconds), 6),
        "most_s": round(max(stage.seconds), 6),
    }
    if stage.work is not None:
        read_bytes = stage.work.bytes(weight_bytes, position_bytes)
        said |= {"flops": stage.work.flops, "bytes": read_bytes}
        said |= {"gflops": round(stage.work.flops * 1e-9 / median_s, 4), "gbps": round(read_bytes * 1e-9 / median_s, 4)}
    return said


def table(said: dict[str, Any]) -> str:
    """The document for people."""
    model, host, shares = said["model"], said["machine"], said["of_the_limits"]
    what = f"{model['name']} with random weights" if model["random_weights"] else model["name"]
    gemm, read = said["limits"]["gemm_gflops"], said["limits"]["read_gbps"]
    crops = "one crop" if said["crops"] == 1 else f"{said['crops']} crops"
    lines = [
        f"{what}, {said['precision']}, {host['cpu']}, threads: {said['threads']}, torch {said['torch']}",
        f"{said['runs']} times a 1920×1080 JPEG: {crops}, {said['prompt_tokens']} prompt tokens, "
        f"{said['tokens']} tokens generated",
        "",
        f"{'':16}{'seconds':>10}{'from':>10}{'to':>10}{'GFLOP':>10}{'GFLOP/s':>10}{'GB/s':>8}",
        *(_line(NAMES[name], stage) for name, stage in said["stages"].items()),
        "",
        f"this machine's float32 matrix products: {_limit_in_words(gemm, 'GFLOP/s')}",
        f"this machine's memory, reading: {_limit_in_words(read, 'GB/s')}",
        *_shares_in_words(shares),
        "",
        f"loaded in {said['load_s']:.1f} s; at its peak {said['peak_rss_bytes'] / MIB:.0f} MiB resident; "
        f"KV cache of {said['kv_positions']} positions: {said['kv_bytes'] / MIB:.1f} MiB",
    ]
    return "\n".join(lines)


def _shares_in_words(shares: dict[str, float]) -> list[str]:
    if not shares:
        return ["how much computing the graphs of engine onnx take is not known"]
    return [
        f"vision, projection and prefill together: {shares['vision_and_prefill']:.0%} of these products' rate, "
        f"at best {shares['vision_and_prefill_best']:.0%}",
        f"each token: {shares['token']:.0%} of this reading rate, at best {shares['token_best']:.0%}",
    ]


def _line(name: str, stage: dict[str, Any]) -> str:
    seconds = "".join(f"{stage[key]:>10.4f}" for key in ("median_s", "least_s", "most_s"))
    if "flops" not in stage:
        return f"{name:16}{seconds}"
    return f"{name:16}{seconds}{stage['flops'] * 1e-9:>10.3g}{stage['gflops']:>10.1f}{stage['gbps']:>8.2f}"


def _limit_in_words(limit: dict[str, Any], unit: str) -> str:
    return f"{limit['best']:.1f} {unit} ({limit['by']}; the same at other moments {limit['least']:.1f} and more)"
