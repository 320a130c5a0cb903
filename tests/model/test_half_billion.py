"""The whole way of the official file, in its shape: int8 moonfile in, float32 model out, within bounds of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from edge_daemon.models.export import export
from edge_daemon.models.graphs import quantized
from edge_daemon.moondream.config import load_config
from tests.model.checkpoints import HALF_BILLION

ROOT = Path(__file__).parents[2]
MOST_BYTES = 3_500_000_000
IMPORT = """\
import json, re, sys
from pathlib import Path
from edge_daemon.models.importing import import_source
from edge_daemon.models.store import Store
import_source(Path(sys.argv[1]), Store(Path(sys.argv[2])), "half")
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # ru_maxrss may be that of who started us
print(json.dumps({"peak_bytes": int(peak[1]) * 1024}))
"""


@pytest.mark.timeout(900)  # 130 s on two cores; the other tests' worker may take one of them
def test_the_official_shape_comes_in_proven_and_in_little_memory(half_billion: Path, tmp_path: Path) -> None:
    """Measured: 661 MiB of moonfile; see the proof's bounds for what its figures mean."""
    export(half_billion, tmp_path / "half.mf", "moonfile", "int8")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path / "half.mf"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    peak_bytes = json.loads(done.stdout)["peak_bytes"]
    directory = tmp_path / "models" / "half"
    config = load_config(directory)
    assert (config.vision, config.text, config.region) == (HALF_BILLION.vision, HALF_BILLION.text, HALF_BILLION.region)
    assert (config.mask, config.bos_state, config.templates) == ("causal", "stored", HALF_BILLION.templates)
    proof = config.provenance["proof"]
    print(f"\npeak {peak_bytes / 2**20:.0f} MiB, {json.dumps(proof, indent=1)}")
    assert peak_bytes <= MOST_BYTES
    assert proof["greedy_steps"] >= 192
    assert max(c["relative_error"] for c in proof["exact"]) < 1e-3, "more than the rounding of a float16 interface"
    same_levels(half_billion / "model.safetensors", directory / "model.safetensors")


def same_levels(original: Path, imported: Path) -> None:
    """Spot checks: the imported numbers are the dequantized ones of the original, to the last bit."""
    names = ("vision.blocks.13.mlp.fc1.weight", "text.blocks.23.attn.qkv.weight", "text.lm_head.weight")
    with safe_open(original, "pt") as one, safe_open(imported, "pt") as other:
        for name in names:
            levels, scale, zero = quantized(one.get_tensor(name).numpy())
            wanted = (levels.T.astype("float32") - float(zero)) * float(scale)
            assert torch.equal(other.get_tensor(name), torch.from_numpy(wanted)), name
