"""The proof of an import: a moonfile's graphs, run by ONNX Runtime, and our model, run by torch, on the same inputs.

Every component gets what the graphs before it gave, so that an error stays where it arises. Then the graphs write on
from three pictures, our model reads along, and at every step the likeliest next token is compared. A model that was
put together wrongly (a transposed matrix, two layers swapped, another mask, another order of the rotary pairs) is
wrong by tens of percent at the first component it touches; what the thresholds leave room for is rounding alone.

Graphs that round their activations to 8 bits as they run lose up to a tenth of the vision encoder's output that way,
which would hide a wrong bias and says nothing of our weights. So such graphs are also run without it (`unrounded`),
and held to a far narrower bound.

One component is open at a time. It knows nothing of containers, stores or how the weights were found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_daemon.errors import ModelError
from edge_daemon.model_files import GRAPHS, INITIAL_KV
from edge_daemon.models.store import Progress, between, silent
from edge_daemon.models.unrounded import unround
from edge_daemon.moondream.allocator import give_back
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.image import crop, scale
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.onnx_parts import OnnxParts
from edge_daemon.moondream.parts import Parts, RegionPart, TextPart
from edge_daemon.moondream.torch_parts import TorchParts

PICTURES = 3
STEPS = 64
"""Tokens that are written on from each picture."""
TOKENS = 256
"""Ids, spread over the vocabulary, that are looked up in the embedding table."""
SAMPLES = 17
"""Coordinates and sizes that the region encoders are tried with: 0, 1/16, … 1."""
EXACT_STEPS = 2
"""Tokens that are written on from one picture without rounding: there a wrong weight shows at once."""
HEARD, EXAMINED, VISION = 0.4, 0.9, 0.15
"""For the progress bar: shares of the work that are done when the graphs and when our model have been run; and the
share of either that its vision takes."""
CHUNK = 1 << 20
"""Values that are compared at once."""
MOST_EXACT_ERROR = 0.03
"""Relative error of a component against graphs that do not round activations. What remains is float16 between the
graphs (2e-4, measured in demo-shapes and in the 0.5B shape) and, where a graph computes in float16, within them: 5e-4
at every operation, of which the vision encoder has some hundred one behind the other."""
MOST_ERROR = 0.25
"""The same against graphs as they are. Rounding activations to 8 bits costs 0.1 in the 27 layers of a vision encoder
with random weights, 0.02 in the decoder; what is wrong costs more, and is found by the exact comparison anyway."""
LEAST_AGREEMENT = 0.8
"""Share of greedy tokens that are the same. Measured: 1.0 in demo-shapes, 0.98 with random weights, whose likeliest
tokens are far closer to each other than a trained model's."""


@dataclass(frozen=True)
class Comparison:
    """One component's outputs, ours against the graph's, over all probes."""

    component: str
    values: int
    relative_error: float
    cosine: float


@dataclass(frozen=True)
class Proof:
    """What was compared and what came out."""

    precision: str
    """What the graphs hold their matrices in: int8, int4, float16 or float32."""
    components: list[Comparison]
    """With the graphs as they are."""
    exact: list[Comparison]
    """With graphs that do not round activations."""
    greedy_steps: int
    greedy_agreement: float

    def report(self) -> dict[str, Any]:
        """For `provenance` and for `--json`."""
        bounds = {"error": MOST_ERROR, "exact_error": MOST_EXACT_ERROR, "agreement": LEAST_AGREEMENT}
        return asdict(self) | {"bounds": bounds, "passed": not self.problems()}

    def problems(self) -> list[str]:
        """What does not pass, in words; a NaN does not."""
        found = [
            f"{c.component}{how}: relative error {c.relative_error:.2g}, at most {most:g} passes"
            for how, most, compared in (
                ("", MOST_ERROR, self.components),
                (" without rounding", MOST_EXACT_ERROR, self.exact),
            )
            for c in compared
            if not c.relative_error <= most
        ]
        if not self.greedy_agreement >= LEAST_AGREEMENT:
            same = f"{self.greedy_agreement:.1%} of {self.greedy_steps} are the same, {LEAST_AGREEMENT:.0%} are needed"
            found.append(f"greedy tokens: {same}")
        return found


def prove(graphs: Path, directory: Path, progress: Progress = silent) -> Proof:
    """Compare the engine-onnx model in `graphs` with the engine-torch model in `directory`, its conversion.

    Raises ModelError when one of them cannot be opened or run; whether it passes is for `Proof.problems` to say.
    """
    config = load_config(directory)
    theirs = OnnxParts(graphs, config)
    with torch.inference_mode():
        heard = hear(theirs, config, PICTURES, STEPS, between(progress, 0.0, HEARD))
        spoken = examine(heard, directory, config, between(progress, HEARD, EXAMINED))
        del heard
        exact = _without_rounding(graphs, directory, config, between(progress, EXAMINED, 1.0))
    return Proof(
        precision=theirs.precision,
        components=spoken.comparisons(),
        greedy_steps=spoken.steps,
        greedy_agreement=spoken.same / max(1, spoken.steps),
        exact=exact.comparisons() if exact else spoken.comparisons(),
    )


def _without_rounding(graphs: Path, directory: Path, config: ModelConfig, progress: Progress) -> Findings | None:
    """The same on a smaller scale with graphs that leave their activations as they are; None where they always do."""
    with TemporaryDirectory(prefix=".unrounded-", dir=graphs) as scratch:
        (Path(scratch) / GRAPHS).mkdir()
        names = [path.name for path in sorted((graphs / GRAPHS).glob("*.onnx"))]
        rounding = {name: unround(graphs / GRAPHS / name, Path(scratch) / GRAPHS / name) for name in names}
        if not any(rounding.values()):
            return None
        for name in (n for n in names if not rounding[n]):
            (Path(scratch) / GRAPHS / name).symlink_to(graphs.absolute() / GRAPHS / name)
        (Path(scratch) / INITIAL_KV).symlink_to(graphs.absolute() / INITIAL_KV)
        theirs = OnnxParts(Path(scratch), config, optimized=False)
        heard = hear(theirs, config, 1, EXACT_STEPS, between(progress, 0.0, 0.5))
        return examine(heard, directory, config, between(progress, 0.5, 1.0))


def refuse_unproven(proof: Proof, name: str) -> None:
    """Raise ModelError that lists what does not pass."""
    if problems := proof.problems():
        listed = "\n  ".join(problems)
        raise ModelError(
            f"{name}: converted, but not equal to the graphs it came from:\n  {listed}\n"
            f"the moonfile itself can still be run: edge-daemon model import FILE --engine onnx"
        )


@dataclass
class Continuation:
    """What the graphs made of one picture."""

    crop: Tensor
    """(1, 3, crop_px, crop_px), scaled."""
    features: Tensor
    """(P, D)."""
    image: Tensor
    """(1, P, T)."""
    inputs: list[Tensor] = field(default_factory=list)
    """What went into the decoder, (1, S, T): the picture, the prompt, then one token after the other."""
    keys_values: list[Tensor] = field(default_factory=list)
    """What each added to the cache, in float16; kept of the first picture only (72 MiB in the 0.5B's shape)."""
    hidden: list[Tensor] = field(default_factory=list)
    """(1, 1, T), after each."""
    logits: list[Tensor] = field(default_factory=list)
    """(V), after each."""


@dataclass
class Testimony:
    """What the graphs said."""

    tokens: Tensor
    """(1, TOKENS)."""
    embedded: Tensor
    """(1, TOKENS, T)."""
    continuations: list[Continuation]
    region: dict[str, Tensor]
    """By component."""


def hear(theirs: Parts, config: ModelConfig, count: int, steps: int, progress: Progress) -> Testimony:
    """Run the graphs, one component after the other, on `count` pictures and `steps` tokens behind each."""
    give_back()
    vision = theirs.vision()
    found: list[Continuation] = []
    for picture in pictures(config.vision.crop_px, count):
        progress("comparing: the graphs' vision", VISION * len(found) / count)
        pixels = scale(crop(picture, config).pixels).to(theirs.dtype).float()  # as the graph's interface has them
        features = vision.encode(pixels)[0].float()
        found.append(Continuation(pixels, features, vision.project(features, features)[None].float()))
    del vision
    give_back()
    text = theirs.text()
    tokens = torch.linspace(0, config.text.vocab - 1, TOKENS).long()[None]
    embedded = text.embed(tokens).float()
    for number, continuation in enumerate(found):
        part = between(progress, VISION + (1 - VISION) * number / count, VISION + (1 - VISION) * (number + 1) / count)
        _write_on(text, _cache(theirs, config), config, continuation, steps, part)
        if number:
            continuation.keys_values.clear()
    del text
    region = _region(theirs.region(), found) if config.region else {}
    return Testimony(tokens, embedded, found, region)


def _write_on(
    text: TextPart, cache: KVCache, config: ModelConfig, picture: Continuation, steps: int, progress: Progress
) -> None:
    """Picture, prompt and `steps` greedy tokens through the decoder's graph; an end token does not end it."""
    prompt = next(iter(config.templates.caption.values()))
    following = picture.image
    for step in range(steps + 2):
        progress("comparing: the graphs' text", step / (steps + 2))
        before = cache.length
        said = text.extend(cache, following)
        logits = said.logits
        picture.inputs.append(following)
        picture.keys_values.append(cache.filled()[:, :, :, before:].to(torch.float16, copy=True))
        picture.hidden.append(said.hidden.float())
        picture.logits.append(logits)
        tokens = [int(logits.argmax())] if step else prompt
        following = text.embed(torch.tensor([tokens])).float()


def _cache(parts: Parts, config: ModelConfig) -> KVCache:
    """Room for a picture, a prompt and STEPS tokens, with BOS in it. Raises ModelError when the context is shorter."""
    prompt = next(iter(config.templates.caption.values()))
    positions = config.prefix_positions + len(prompt) + STEPS
    if positions > config.text.max_context:
        raise ModelError(f"{config.name}: {positions} positions are needed, its context has {config.text.max_context}")
    cache = KVCache(config, positions, dtype=parts.dtype)
    cache.append(parts.bos_kv())
    return cache


def _region(region: RegionPart, continuations: list[Continuation]) -> dict[str, Tensor]:
    """What the region head makes of a row of coordinates and sizes, and of every hidden state there is."""
    steps = torch.linspace(0, 1, SAMPLES)
    sizes = [torch.stack([w, 1 - w * w]).view(1, 1, 2) for w in steps]
    hidden = [state for continuation in continuations for state in continuation.hidden]
    return {
        "coord_encoder": torch.cat([region.encode_coord(x.view(1, 1, 1)).float() for x in steps]),
        "size_encoder": torch.cat([region.encode_size(size).float() for size in sizes]),
        "coord_decoder": torch.cat([region.coord_logits(state).float() for state in hidden]),
        "size_decoder": torch.cat([region.size_logits(state).float() for state in hidden]),
    }


def examine(heard: Testimony, directory: Path, config: ModelConfig, progress: Progress) -> Findings:
    """Run our model on what the graphs were given, and compare.

    Each part is mapped anew, so that what one has read does not stay resident with the next.
    """

    def ours() -> TorchParts:
        return TorchParts(directory, config, torch.device("cpu"), torch.float32)

    findings, count = Findings(), len(heard.continuations)
    give_back()
    vision = ours().vision()
    for number, picture in enumerate(heard.continuations):
        progress("comparing: our vision", VISION * number / count)
        findings.compare("vision_encoder", vision.encode(picture.crop)[0], picture.features)
        findings.compare("vision_projection", vision.project(picture.features, picture.features), picture.image)
    del vision
    give_back()
    text = ours().text()
    findings.compare("text_encoder", text.embed(heard.tokens), heard.embedded)
    for number, picture in enumerate(heard.continuations):
        part = between(progress, VISION + (1 - VISION) * number / count, VISION + (1 - VISION) * (number + 1) / count)
        _read_along(text, _cache(ours(), config), picture, findings, part)
    del text
    if heard.region:
        read = _region(ours().region(), heard.continuations)
        for component, theirs in heard.region.items():
            findings.compare(component, read[component], theirs)
    return findings


def _read_along(text: TextPart, cache: KVCache, picture: Continuation, findings: Findings, progress: Progress) -> None:
    """The decoder on the graphs' own words: an error at one step is not carried into what the next one reads."""
    for step, following in enumerate(picture.inputs):
        progress("comparing: our text", step / len(picture.inputs))
        before = cache.length
        said = text.extend(cache, following)
        logits = said.logits  # once: it is computed when it is asked for
        if picture.keys_values:
            _compare_cache(findings, cache.filled()[:, :, :, before:], picture.keys_values[step])
        findings.compare("text_decoder hidden", said.hidden, picture.hidden[step])
        findings.compare("text_decoder logits", logits, picture.logits[step])
        if step:  # behind a picture alone there is nothing to be said yet
            findings.steps += 1
            findings.same += int(logits.argmax() == picture.logits[step].argmax())


def _compare_cache(findings: Findings, ours: Tensor, theirs: Tensor) -> None:
    """Keys and values (layers, 2, heads, n, head_dim), layer by layer: sorting all at once takes half a GiB."""
    for layer, heard in zip(ours, theirs, strict=True):
        # a graph may lay the dimensions of its keys out in another order; which is whose, the logits show
        findings.compare("text_decoder keys", layer[0].sort(-1).values, heard[0].float().sort(-1).values)
        findings.compare("text_decoder values", layer[1], heard[1])


@dataclass
class Sums:
    """Running sums of one comparison."""

    values: int = 0
    difference: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    product: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """One more pair of tensors with as many values."""
        for mine, heard in zip(torch.split(ours.flatten(), CHUNK), torch.split(theirs.flatten(), CHUNK), strict=True):
            a, b = mine.to(torch.float64), heard.to(torch.float64)
            self.values += a.numel()
            self.difference += float((a - b).square().sum())
            self.ours += float(a.square().sum())
            self.theirs += float(b.square().sum())
            self.product += float((a * b).sum())

    def comparison(self, component: str) -> Comparison:
        """The figures; what is nothing but zeros is equal to zeros only."""
        both = (self.ours * self.theirs) ** 0.5
        error = (self.difference / self.theirs) ** 0.5 if self.theirs else float(self.difference > 0)
        return Comparison(component, self.values, error, self.product / both if both else float(not self.difference))


class Findings:
    """All comparisons so far."""

    def __init__(self) -> None:
        self.steps, self.same = 0, 0
        self._sums: dict[str, Sums] = {}

    def compare(self, component: str, ours: Tensor, theirs: Tensor) -> None:
        """Add one probe to a component's figures."""
        self._sums.setdefault(component, Sums()).add(ours, theirs)

    def comparisons(self) -> list[Comparison]:
        """One a component."""
        return [sums.comparison(name) for name, sums in self._sums.items()]


def pictures(side_px: int, count: int) -> list[Image.Image]:
    """Made-up pictures: soft colours, a few edges and some grain, always the same."""
    made = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (4 + 3 * seed, 5, 3), np.uint8))
        soft = np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC)).astype(np.int16)
        soft[side_px // 3 : side_px // 2, side_px // 4 : side_px // 2] += 60 * (seed - 1)
        grain = random.integers(-12, 13, soft.shape, np.int16)
        made.append(Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)))
    return made
