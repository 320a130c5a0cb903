"""Train `demo-shapes` from nothing: `python -m edge_daemon.demo.train --out DIR`.

The number of steps is fixed, so a seed gives one model, however fast the machine is. What is trained are
exactly the modules that are used later; only the dense head, which tells the vision encoder directly what
lies on each patch, is thrown away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from edge_daemon.demo.evaluate import Figures, evaluate
from edge_daemon.demo.samples import Batch, Packer, batch, dense_labels
from edge_daemon.demo.scenes import BACKGROUNDS, COLOURS, DIAMETERS, LATTICE, SHAPES, Scene
from edge_daemon.demo.vocabulary import build_tokenizer, special_tokens, templates
from edge_daemon.model_files import CONFIG, TOKENIZER, WEIGHTS
from edge_daemon.moondream.config import ModelConfig, RegionConfig, TextConfig, VisionConfig
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text, masked
from edge_daemon.moondream.vision import Vision

NOTE = (
    "demo-shapes is a small model for trying things out. It knows coloured shapes on plain backgrounds and "
    "nothing else: of any other picture it says something, but nothing that means anything."
)
REPORT = "report.json"
HELD_OUT_SCENES = 500
CELL_PX = 3
"""While it is trained, the vision encoder sees pictures shrunk by this: the mean of 3 × 3 pixels is linear, and
becomes part of the patch embedding at the end (`unfold`). So a step draws and embeds a ninth of the pixels."""
POSITION_SCALE = 0.5
DENSE_CLASSES = (len(SHAPES), len(COLOURS), len(DIAMETERS), LATTICE, LATTICE, len(BACKGROUNDS), 2, 2)
OF_THINGS = 5
"""The first of these are about the thing on a patch; the others about every patch."""
BOX_NUMBERS = 4
"""What `dense_labels` tells of a patch."""
LOSS_WEIGHTS = {"dense": 1.0, "token": 2.0, "coord": 0.5, "size": 0.5}
BIN_SPREAD = 1.0
"""Standard deviation, in bins, of the soft targets of coordinates and sizes: near misses are no failures."""


@dataclass(frozen=True)
class Settings:
    """What a training run depends on; goes into report.json."""

    seed: int = 1
    dense_steps: int = 1000
    """First, with the dense loss alone: the vision encoder learns to see before anyone speaks of it."""
    restart: int = 5000
    """Here the learning rate has come down, and a second, lower cycle begins: words alone, with a new optimizer."""
    steps: int = 11000
    """In all."""
    pictures: int = 16
    """Pictures in one step."""
    learning_rate: float = 1.5e-3
    restart_learning_rate: float = 8e-4
    warm_up: int = 200
    weight_decay: float = 0.02


def shapes_config() -> ModelConfig:
    """The architecture: moondream's, small, with patches of 42 pixels (9 × 9 of them)."""
    ids = build_tokenizer().get_vocab()
    return ModelConfig(
        name="demo-shapes",
        vision=VisionConfig(dim=128, ff_dim=512, layers=4, heads=4, patch_px=42, crop_px=378, projection_dim=192),
        text=TextConfig(dim=128, ff_dim=512, layers=4, heads=4, vocab=len(ids), max_context=512, rotary_dim=16),
        region=RegionConfig(
            coord_features=64, coord_bins=128, size_features=64, size_bins=128, inner_dim=128, size_scale="linear"
        ),
        cropping="template",
        mask="causal",
        bos_state="computed",
        tokens=special_tokens(ids),
        templates=templates(ids),
        note=NOTE,
    )


def shrunk(config: ModelConfig) -> ModelConfig:
    """The same model for pictures whose pixels are cells of CELL_PX × CELL_PX."""
    vision = replace(
        config.vision, patch_px=config.vision.patch_px // CELL_PX, crop_px=config.vision.crop_px // CELL_PX
    )
    return replace(config, vision=vision)


def unfold(weight: Tensor, patch_px: int) -> Tensor:
    """Patch embedding (D, 3·n²) of cells → (D, 3·patch_px²) of pixels: every pixel has its share of its cell."""
    cells = patch_px // CELL_PX
    pixels = weight.view(-1, 3, cells, cells).repeat_interleave(CELL_PX, 2).repeat_interleave(CELL_PX, 3)
    return pixels.flatten(1) / CELL_PX**2


class Trainee(nn.Module):
    """The three parts of the model and the dense head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        region = config.region
        assert region is not None, "demo-shapes has a region head"
        self.target = config
        self.config = config = shrunk(config)
        self.vision = Vision(config.vision, config.text.dim)
        self.text = Text(config.text)
        self.region = Region(region, config.text.dim)
        self.dense = nn.Linear(config.vision.dim, sum(DENSE_CLASSES) + BOX_NUMBERS)
        nn.init.normal_(self.text.wte, std=0.1)
        with torch.no_grad():
            self.vision.pos_emb.copy_(POSITION_SCALE * waves(config.vision.grid, config.vision.dim))
        for parameter in (self.region.coord_features, self.region.size_features):
            nn.init.normal_(parameter, std=2.0)

    def model_tensors(self) -> dict[str, Tensor]:
        """What is shipped."""
        state = self.state_dict()
        state["vision.patch_emb.weight"] = unfold(state["vision.patch_emb.weight"], self.target.vision.patch_px)
        return {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("dense.")}

    def losses(self, samples: Batch, *, dense: bool, spoken: bool) -> dict[str, Tensor]:
        """The terms of the loss that are asked for, each a mean over its own positions."""
        with sdpa_kernel(SDPBackend.MATH):  # on short sequences its gradient is twice as fast as flash attention's
            features = self.vision.encode(samples.crops.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0)
        losses = {"dense": self._dense_loss(features, samples.scenes)} if dense else {}
        if spoken:
            image = self.vision.project(features, features)
            losses |= self._language_losses(self.hidden(image, samples.rows), samples.rows)
        return losses

    def hidden(self, image: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Hidden states (B, ROW, T) of the tails."""
        prefix = self.config.prefix_positions
        bos = self.text.embed(torch.full((len(image), 1), self.config.tokens.bos))
        tails = self.text.embed(rows["token"])
        coord, size = rows["coord"][..., None], rows["size"]
        tails = torch.where(coord >= 0, self.region.encode_coord(coord), tails)
        tails = torch.where(size[..., :1] >= 0, self.region.encode_size(size), tails)
        positions = torch.cat([torch.arange(prefix).expand(len(image), -1), prefix + rows["position"]], dim=1)
        embeddings = torch.cat([bos, image.to(bos.dtype), tails], dim=1)
        hidden: Tensor = self.text(embeddings, positions, masked(packed_mask(rows["tail"], prefix)))
        return hidden[:, prefix:]

    def _language_losses(self, hidden: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the words, the coordinates and the sizes."""
        said = rows["next_token"] >= 0
        losses = {"token": F.cross_entropy(self.text.logits(hidden[said]).float(), rows["next_token"][said])}
        placed, sized = rows["next_coord"] >= 0, rows["next_size"][..., 0] >= 0
        losses["coord"] = soft_cross_entropy(self.region.coord_logits(hidden[placed]), rows["next_coord"][placed])
        losses["size"] = soft_cross_entropy(self.region.size_logits(hidden[sized]), rows["next_size"][sized])
        return losses

    def _dense_loss(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """What lies on each patch; shape, colour, size and box only where something does."""
        classes, boxes = (torch.from_numpy(a) for a in dense_labels(scenes, self.config.vision.grid))
        *logits, offsets = self.dense(features).float().split([*DENSE_CLASSES, BOX_NUMBERS], dim=-1)
        on = classes[..., -1] == 1
        loss = 10 * F.smooth_l1_loss(offsets[on], boxes[on], beta=0.02)
        for index, scores in enumerate(logits):
            where = on if index < OF_THINGS else torch.ones_like(on)
            loss = loss + F.cross_entropy(scores[where], classes[..., index][where])
        return loss


def waves(grid: int, dim: int) -> Tensor:
    """Where each patch is, (1, grid², dim): sines and cosines of its column and its row, from 2 to 4·grid patches long.

    The position embedding starts as this and not as noise, because where a patch is is half of what is asked.
    """
    lengths = torch.logspace(math.log10(2), math.log10(4 * grid), dim // 4)
    phases = 2 * math.pi * torch.arange(grid)[:, None] / lengths
    axis = torch.cat([phases.sin(), phases.cos()], dim=-1)
    rows, columns = axis.repeat_interleave(grid, 0), axis.repeat(grid, 1)
    return torch.cat([columns, rows], dim=-1)[None]


def soft_cross_entropy(logits: Tensor, bins: Tensor) -> Tensor:
    """Against a bell around the right bin instead of the bin alone."""
    distance = torch.arange(logits.shape[-1]) - bins[..., None]
    target = torch.softmax(-(distance**2) / (2 * BIN_SPREAD**2), dim=-1)
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()


def packed_mask(tail: Tensor, prefix: int) -> Tensor:
    """(B, 1, S, S) for a causal prefix and tails (B, ROW): a tail sees the prefix and its own past."""
    rows, length = tail.shape
    mask = torch.ones(rows, prefix + length, prefix + length, dtype=torch.bool).tril()
    mask[:, prefix:, prefix:] &= tail[:, :, None] == tail[:, None, :]
    return mask[:, None]


class Stream(Dataset[Batch]):
    """Batch number n of a run; each has its own random stream."""

    def __init__(self, settings: Settings, config: ModelConfig) -> None:
        self.settings = settings
        self.packer = Packer(config)

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, index: int) -> Batch:
        rng = random.Random(f"train {self.settings.seed} {index}")
        return batch(self.packer, rng, self.settings.pictures)


def batches(settings: Settings, config: ModelConfig) -> Iterator[Batch]:
    """All batches of a run, drawn by a process of its own while the step before is computed."""
    loader = DataLoader(Stream(settings, config), batch_size=None, num_workers=1, prefetch_factor=4)
    return iter(loader)


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up at the start of each of three parts; half a cosine down to 1 % in the second and the third."""
    if step < settings.dense_steps:
        return settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
    first, last, peak = settings.dense_steps, settings.restart, settings.learning_rate
    if step >= settings.restart:
        first, last, peak = settings.restart, settings.steps, settings.restart_learning_rate
    warmth = min(1.0, (step - first + 1) / settings.warm_up)
    return peak * warmth * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - first) / (last - first))) / 2)


def optimizer_for(trainee: Trainee, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; vectors and tables are not decayed."""
    matrices = [p for p in trainee.parameters() if p.dim() == 2 and p is not trainee.text.wte]
    chosen = {id(p) for p in matrices}
    others = [p for p in trainee.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def train(settings: Settings, out: Path, log_every: int = 50, save_every: int = 500) -> Trainee:
    """Run all steps; the model so far is saved to `out` now and then."""
    torch.manual_seed(settings.seed)
    trainee = Trainee(shapes_config())
    optimizer = optimizer_for(trainee, settings)
    start = time.perf_counter()
    sums: dict[str, float] = {}
    for step, samples in enumerate(batches(settings, trainee.config)):
        if step == settings.restart:
            optimizer = optimizer_for(trainee, settings)
        losses = training_step(trainee, optimizer, samples, step, settings)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value / log_every
        if (step + 1) % log_every == 0:
            told = "  ".join(f"{name} {value:.3f}" for name, value in sums.items())
            print(f"step {step + 1}/{settings.steps}  {told}  {time.perf_counter() - start:.0f} s", file=sys.stderr)
            sums.clear()
        if (step + 1) % save_every == 0:
            save(trainee, out)
    save(trainee, out)
    return trainee


def training_step(
    trainee: Trainee, optimizer: torch.optim.Optimizer, samples: Batch, step: int, settings: Settings
) -> dict[str, float]:
    """One step; the terms of its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    with torch.autocast("cpu", torch.bfloat16):
        losses = trainee.losses(samples, dense=step < settings.restart, spoken=step >= settings.dense_steps)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()])
    nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
    optimizer.step()
    return {name: float(loss.detach()) for name, loss in losses.items()}


def save(trainee: Trainee, out: Path) -> None:
    """Write the model directory, without its report."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).write_text(trainee.target.to_json(), encoding="utf-8")
    build_tokenizer().save(str(out / TOKENIZER))
    save_file(trainee.model_tensors(), out / WEIGHTS)


def write_report(out: Path, settings: Settings, figures: Figures) -> None:
    """report.json: what was asked for, what came out, and of which weights it tells."""
    digest = hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()
    report = {
        "model_sha256": digest,
        "settings": asdict(settings),
        "torch": torch.__version__,
        "held_out": asdict(figures),
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edge_daemon.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model goes")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of weights and scenes (%(default)s)")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="steps in all (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(seed=options.seed, steps=options.steps)
    train(settings, options.out)
    figures = evaluate(options.out, HELD_OUT_SCENES)
    write_report(options.out, settings, figures)
    print(json.dumps(asdict(figures), indent=2))


if __name__ == "__main__":
    main()
