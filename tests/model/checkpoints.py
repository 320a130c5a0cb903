"""Model directories with random weights, in the published shapes and in tiny ones. Knows nothing of pytest.

The weights are scaled so that every layer matters and logits have a standard deviation of about 1: a
difference of 1e-4 between two logits is then a small one, and a real mistake is thousands of times larger.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor

from edge_daemon.bench import random_model
from edge_daemon.bench.random_model import SHAPES
from edge_daemon.moondream.config import (
    BosState,
    Cropping,
    Mask,
    ModelConfig,
    RegionConfig,
    SizeScale,
    Templates,
    TextConfig,
    Tokens,
    VisionConfig,
)
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision

EOS, ANSWER, UNKNOWN = 0, 1, 2
STEMS = re.findall(
    r"\w+",
    "a an the red green blue round square star disc on in left right above below small large bright dark sky sea "
    "tree bird boat house road man dog cat is are two three and with of near far old new water grass one",
)

HALF_BILLION = SHAPES["0.5b"]

TWO_BILLION = replace(
    HALF_BILLION,
    name="moondream-2b",
    vision=VisionConfig(dim=1152, ff_dim=4304, layers=27, heads=16, patch_px=14, crop_px=378, projection_dim=8192),
    text=TextConfig(dim=2048, ff_dim=8192, layers=24, heads=32, vocab=51200, max_context=2048, rotary_dim=32),
    region=RegionConfig(
        coord_features=256, coord_bins=1024, size_features=512, size_bins=1024, inner_dim=8192, size_scale="log2"
    ),
    cropping="overlap",
    mask="prefix",
    bos_state="computed",
    tokens=Tokens(bos=0, eos=0, answer=3),
    templates=Templates(
        caption={
            "short": [1, 32708, 2, 12492, 3],
            "normal": [1, 32708, 2, 6382, 3],
            "long": [1, 32708, 2, 4059, 3],
        },
        query={"prefix": [1, 15381, 2], "suffix": [3]},
        detect={"prefix": [1, 7235, 476, 2], "suffix": [3]},
        point={"prefix": [1, 2581, 2], "suffix": [3]},
    ),
)


def tiny_config(
    cropping: Cropping = "template",
    mask: Mask = "causal",
    bos_state: BosState = "computed",
    size_scale: SizeScale = "linear",
) -> ModelConfig:
    """A model of 100 patches (10 × 10 of 3 px) in which no two sizes are equal that could be mixed up."""
    return ModelConfig(
        name="tiny",
        vision=VisionConfig(dim=24, ff_dim=40, layers=2, heads=3, patch_px=3, crop_px=30, projection_dim=28),
        text=TextConfig(dim=32, ff_dim=56, layers=3, heads=4, vocab=96, max_context=200, rotary_dim=4),
        region=RegionConfig(
            coord_features=8, coord_bins=16, size_features=12, size_bins=10, inner_dim=20, size_scale=size_scale
        ),
        cropping=cropping,
        mask=mask,
        bos_state=bos_state,
        tokens=Tokens(bos=5, eos=EOS, answer=ANSWER),
        templates=Templates(
            caption={"short": [9, 10, 11], "normal": [9, 12, 13, 43]},
            query={"prefix": [14, 15], "suffix": [16, 27]},
            detect={"prefix": [17], "suffix": [18]},
            point={"prefix": [19], "suffix": [18]},
        ),
    )


def tokenizer() -> Tokenizer:
    """Words with and without the space before them, so that an answer can be cut inside a word."""
    words = [*("Ġ" + stem for stem in STEMS), *STEMS]
    names = ["<eos>", "<answer>", "<unk>", *words]
    built = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return built


def random_tensors(config: ModelConfig, seed: int, own_bos: bool = True) -> dict[str, Tensor]:
    """All tensors of a checkpoint.

    `own_bos`: the stored BOS is what the decoder itself computes, as in a real checkpoint; otherwise it is
    random, so that a test can tell whether it is used at all.
    """
    tensors = dict(random_model.random_tensors(config, seed))
    if config.bos_state == "stored" and own_bos:
        with torch.device("meta"):
            text = Text(config.text)
        own = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if name.startswith("text.")}
        del own[BOS_KV.removeprefix("text.")]
        text.load_state_dict(own, assign=True)
        tensors[BOS_KV] = bos_kv(text, config)
    return tensors


def bos_kv(text: Text, config: ModelConfig) -> Tensor:
    """Keys and values of BOS alone, (layers, 2, heads, 1, head_dim)."""
    cache = KVCache(config, config.prefix_positions + 1)
    with torch.inference_mode():
        text.extend(cache, text.embed(torch.tensor([[config.tokens.bos]])))
        return cache._kv[:, :, :, :1].clone()


def write_model(
    directory: Path, config: ModelConfig, seed: int = 0, own_bos: bool = True, dtype: torch.dtype = torch.float32
) -> Path:
    """A complete model directory; the tensors are held once."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config, seed, own_bos)
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)
    write_tensors(directory, config, tensors)
    return directory


def text_of(model: Moondream) -> Text:
    """The decoder of a model that torch computes."""
    assert isinstance(model.text, Text)
    return model.text


def modules_of(model: Moondream) -> tuple[Vision, Text, Region]:
    """The parts of a model that torch computes."""
    assert isinstance(model.vision, Vision)
    assert isinstance(model.region, Region)
    return model.vision, text_of(model), model.region


def write_tensors(directory: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """A model directory of the given tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(config.to_json(), encoding="utf-8")
    tokenizer().save(str(directory / "tokenizer.json"))
