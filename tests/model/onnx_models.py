"""Model directories of `engine: onnx`, made of ordinary ones by our own export. Knows nothing of pytest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edge_daemon.choices import ExportPrecision
from edge_daemon.model_files import GRAPHS, INITIAL_KV
from edge_daemon.models.export import export
from edge_daemon.moondream.config import load_config


def as_graphs(source: Path, target: Path, precision: ExportPrecision = "float32") -> Path:
    """The model in `source`, as the eight graphs that a moonfile holds, in `target`."""
    exported = target.with_name(f"{target.name}.exported")
    export(source, exported, "onnx", precision)
    (target / GRAPHS).mkdir(parents=True)
    for graph in exported.glob("*.onnx"):
        graph.rename(target / GRAPHS / graph.name)
    (exported / INITIAL_KV).rename(target / INITIAL_KV)
    shutil.copy(source / "tokenizer.json", target)
    config = replace(load_config(source), engine="onnx", bos_state="stored")
    (target / "config.json").write_text(config.to_json(), encoding="utf-8")
    shutil.rmtree(exported)
    return target
