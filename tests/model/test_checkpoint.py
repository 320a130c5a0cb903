"""Import of safetensors checkpoints: both of upstream's layouts, shards, tied heads, tokenizers, and every refusal."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from torch import Tensor

from edge_daemon.errors import ModelError
from edge_daemon.models import catalogue
from edge_daemon.models.checkpoint import _wanted, import_checkpoint
from edge_daemon.models.checkpoint_files import refuse_pickle
from edge_daemon.models.layouts import places
from edge_daemon.moondream.config import ModelConfig, RegionConfig, TextConfig, load_config
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.text import rotary_table, rotate
from tests.model.checkpoints import HALF_BILLION, TWO_BILLION, random_tensors, tiny_config, write_model

OLDER = {
    "vision.patch_emb": "vision_encoder.encoder.model.visual.patch_embed.linear",
    "vision.pos_emb": "vision_encoder.encoder.model.visual.pos_embed",
    "vision.blocks": "vision_encoder.encoder.model.visual.blocks",
    "vision.post_ln": "vision_encoder.encoder.model.visual.norm",
    "vision.proj_mlp": "vision_encoder.projection.mlp",
    "text.wte": "text_model.transformer.embd.wte.weight",
    "text.blocks": "text_model.transformer.h",
    "text.post_ln": "text_model.lm_head.ln",
    "text.lm_head": "text_model.lm_head.linear",
    "region.coord_encoder": "region_model.coordinate_encoder",
    "region.coord_decoder": "region_model.coordinate_decoder",
    "region.coord_features": "region_model.coordinate_features.weight",
    "region.size_features": "region_model.size_features.weight",
    "region.size": "region_model.size",
}
"""Beginnings of our names, and the older layout's (upstream's torch/weights.py)."""

Edit = Callable[[dict[str, Tensor]], None]


def older(name: str) -> str:
    """Our name in the older layout."""
    for ours, theirs in OLDER.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    name = re.sub(r"(visual\.blocks\.\d+)\.ln", r"\1.norm", name)
    return (
        re.sub(r"(h\.\d+)\.attn\.", r"\1.mixer.", name)
        .replace("mixer.qkv", "mixer.Wqkv")
        .replace("mixer.proj", "mixer.out_proj")
    )


def starmie() -> Tokenizer:
    """Control tokens first, as in moondream/starmie-v1."""
    words = ["<|endoftext|>", "<|md_reserved_0|>", "<|md_reserved_1|>", "<|md_reserved_2|>", "a", "cat"]
    return word_level({word: index for index, word in enumerate(words)})


def gpt2() -> Tokenizer:
    """The marks of GPT-2's vocabulary at their places."""
    vocabulary = {f"token{index}": index for index in range(50257) if index not in (25, 198, 628, 50256)}
    return word_level(vocabulary | {":": 25, "Ċ": 198, "ĊĊ": 628, "<|endoftext|>": 50256})


def word_level(vocabulary: dict[str, int]) -> Tokenizer:
    built = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return built


def upstream_json(config: ModelConfig) -> dict[str, object]:
    """config.json in the form of upstream's config_md2.json; one caption more when sizes are logarithmic."""
    text, vision = config.text, config.vision
    captions = dict(config.templates.caption)
    return {
        "text": {
            "dim": text.dim,
            "n_layers": text.layers,
            "n_heads": text.heads,
            "max_context": text.max_context,
            "prefix_attn": config.prefix_positions if config.mask == "prefix" else 0,
        },
        "vision": {"enc_dim": vision.dim, "enc_n_heads": vision.heads, "max_crops": 12, "overlap_margin": 4},
        "tokenizer": {
            "bos_id": config.tokens.bos,
            "eos_id": config.tokens.eos,
            "answer_id": config.tokens.answer,
            "templates": {
                "caption": captions,
                "query": config.templates.query,
                "detect": config.templates.detect,
                "point": config.templates.point,
            },
        },
    }


TINY = replace(
    tiny_config(cropping="overlap", mask="prefix", size_scale="log2"),
    # upstream rotates half of a head; the bins of a size are half of what its decoder gives
    text=TextConfig(dim=32, ff_dim=56, layers=3, heads=4, vocab=96, max_context=200, rotary_dim=4),
    region=RegionConfig(
        coord_features=8, coord_bins=16, size_features=12, size_bins=10, inner_dim=20, size_scale="log2"
    ),
)


class Checkpoint:
    """Upstream's files of a tiny model, to be bent by a test."""

    def __init__(self, directory: Path, config: ModelConfig = TINY) -> None:
        self.directory, self.config = directory, config
        self.tensors = random_tensors(config, seed=7)
        self.json: dict[str, object] | None = upstream_json(config)
        self.tokenizer: Tokenizer | None = starmie()
        directory.mkdir()

    def write(self, named: dict[str, Tensor] | None = None) -> Path:
        named = {f"model.{name}": tensor for name, tensor in self.tensors.items()} if named is None else named
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, self.directory / "model.safetensors")
        if self.json is not None:
            (self.directory / "config.json").write_text(json.dumps(self.json))
        if self.tokenizer is not None:
            self.tokenizer.save(str(self.directory / "tokenizer.json"))
        return self.directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "source")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def imported(source: Path, staging: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    import_checkpoint(source, staging, "mine")
    return load_config(staging), load_file(staging / "model.safetensors")


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# ---- what comes in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_newer_layout(checkpoint: Checkpoint, staging: Path, prefix: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    source = checkpoint.write({f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    config, found = imported(source, staging)
    assert_same(found, tensors)
    assert replace(config, provenance={}) == replace(TINY, name="mine")
    assert config.provenance["source"] == "source"
    assert config.provenance["format"] == "safetensors"
    assert set(config.provenance["sha256"]) == {"model.safetensors"}


@pytest.mark.parametrize("inside", ["", "._orig_mod"])
def test_the_older_layout(checkpoint: Checkpoint, staging: Path, inside: str) -> None:
    named = {}
    for name, tensor in checkpoint.tensors.items():
        first, _, rest = older(name).partition(".")
        named[f"{first}{inside}.{rest}"] = tensor.T if "_features" in name else tensor
    assert f"text_model{inside}.transformer.h.0.mixer.Wqkv.weight" in named
    assert f"region_model{inside}.coordinate_features.weight" in named
    _, found = imported(checkpoint.write(named), staging)
    assert_same(found, checkpoint.tensors)


def test_a_sharded_checkpoint(checkpoint: Checkpoint, staging: Path) -> None:
    source = checkpoint.write()
    named = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate(("vision", "text", "region"), start=1):
        name = f"model-{number:05}-of-00003.safetensors"
        shard = {key: tensor for key, tensor in named.items() if key.startswith(f"model.{part}.")}
        save_file(shard, source / name)
        weight_map |= dict.fromkeys(shard, name)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config, found = imported(source, staging)
    assert_same(found, checkpoint.tensors)
    assert len(config.provenance["sha256"]) == 3


@pytest.mark.parametrize("left_out", ["text.lm_head.weight", "text.wte"])
def test_tied_embeddings(checkpoint: Checkpoint, staging: Path, left_out: str) -> None:
    """Whichever of the two tables is in the file; a tied head has no bias."""
    table = checkpoint.tensors["text.wte"]
    checkpoint.tensors |= {"text.lm_head.weight": table, "text.lm_head.bias": torch.zeros(TINY.text.vocab)}
    kept = {n: t for n, t in checkpoint.tensors.items() if n not in (left_out, "text.lm_head.bias")}
    _, found = imported(checkpoint.write(kept), staging)
    assert_same(found, checkpoint.tensors)


def test_buffers_are_no_weights(checkpoint: Checkpoint, staging: Path) -> None:
    buffers = {
        "model.attn_mask": torch.ones(1, 1, 8, 8),
        "model.text.freqs_cis": torch.ones(8, 2, 2),
        "model.text.position_ids": torch.ones(8),
        "model.text.blocks.0.kv_cache.k_cache": torch.ones(1, 4, 8, 8),
        "model.text.blocks.2.kv_cache.v_cache": torch.ones(1, 4, 8, 8),
        "text_model.transformer.h.1.mixer.rotary_emb.inv_freq": torch.ones(4),
    }
    named = {f"model.{name}": tensor for name, tensor in checkpoint.tensors.items()}
    _, found = imported(checkpoint.write(named | buffers), staging)
    assert_same(found, checkpoint.tensors)


def test_a_checkpoint_without_a_region_head(checkpoint: Checkpoint, staging: Path) -> None:
    checkpoint.tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("region.")}
    config, found = imported(checkpoint.write(), staging)
    assert config.region is None
    assert_same(found, checkpoint.tensors)


def test_the_file_itself_may_be_given(checkpoint: Checkpoint, staging: Path) -> None:
    _, found = imported(checkpoint.write() / "model.safetensors", staging)
    assert_same(found, checkpoint.tensors)


def test_a_model_directory_of_ours_keeps_everything(tmp_path: Path, staging: Path) -> None:
    """As an export to safetensors writes it: our config.json says it all, a stored BOS state included."""
    wanted = tiny_config(cropping="template", mask="causal", bos_state="stored")
    source = write_model(tmp_path / "ours", wanted)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, source / "model.safetensors")
    config, found = imported(source, staging)
    assert replace(config, provenance={}) == replace(wanted, name="mine")
    assert_same(found, tensors)


def test_what_was_imported_runs(checkpoint: Checkpoint, staging: Path) -> None:
    """The same answer as from the model directory that holds the same tensors."""
    import_checkpoint(checkpoint.write(), staging, "mine")
    direct = write_model(checkpoint.directory.parent / "direct", TINY, seed=7)
    picture = Image.new("RGB", (40, 30), (90, 30, 200))
    logits = []
    for directory in (direct, staging):
        model = Moondream(directory)
        logits.append(model.image_embeddings(picture))
    assert torch.equal(*logits)


# ---- what the files beside it say -----------------------------------------------------------------------


def test_the_keys_of_the_published_2b(tmp_path: Path) -> None:
    """592 tensors in the file of 2025-06-21; its size fits the weights to the byte, less the header."""
    names = _wanted(TWO_BILLION)
    assert len(names) == 592
    assert places(f"model.{name}" for name in names).keys() == names.keys()
    weights = sum(math.prod(shape) for shape in names.values())
    assert weights == catalogue.weights_of(catalogue.TWO_BILLION)
    header_bytes = catalogue.artefact("moondream-2b").files[0].size_bytes - 2 * weights  # type: ignore[operator]  # known
    assert 50_000 < header_bytes < 80_000


def test_the_size_of_the_half_billion() -> None:
    weights = sum(math.prod(shape) for name, shape in _wanted(HALF_BILLION).items() if name != "text.bos_kv")
    assert weights == catalogue.weights_of(catalogue.HALF_BILLION)


def test_prompts_by_the_starmie_tokenizer_alone(checkpoint: Checkpoint, staging: Path) -> None:
    """No config at all: the tokenizer tells the prompts, but nobody tells the heads of an unknown width."""
    checkpoint.json = None
    with pytest.raises(ModelError, match=r"width 32 is of no published Moondream 2 \(known: 1024 \(16 heads\)"):
        imported(checkpoint.write(), staging)


def published(dim: int, vocab: int, tokenizer: Tokenizer, directory: Path) -> Checkpoint:
    """Thin blocks of a published width, so that the heads are known; no config.json. All numbers are zero."""
    text = TextConfig(dim=dim, ff_dim=8, layers=1, heads=dim // 64, vocab=vocab, max_context=2048, rotary_dim=32)
    vision = replace(TINY.vision, dim=720 if dim == 1024 else 1152, layers=1, ff_dim=8, heads=1)
    built = Checkpoint(directory)
    shapes = _wanted(replace(TINY, text=text, vision=vision))
    built.tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    built.tokenizer, built.json = tokenizer, None
    return built


def test_the_2b_of_june_2025_without_a_config(tmp_path: Path, staging: Path) -> None:
    config, _ = imported(published(2048, 32_709, starmie(), tmp_path / "source").write(), staging)
    assert config.templates == TWO_BILLION.templates
    assert config.tokens == TWO_BILLION.tokens
    assert config.text == replace(TWO_BILLION.text, layers=1, ff_dim=8, vocab=32_709)
    assert config.vision.heads == 16
    assert (config.cropping, config.mask, config.bos_state) == ("overlap", "prefix", "computed")
    assert config.region is not None
    assert config.region.size_scale == "log2"


def test_the_half_billion_without_a_config(tmp_path: Path, staging: Path) -> None:
    config, _ = imported(published(1024, 50_257, gpt2(), tmp_path / "source").write(), staging)
    assert config.templates == HALF_BILLION.templates
    assert config.tokens == HALF_BILLION.tokens
    assert (config.text.heads, config.vision.heads) == (16, 10)
    assert config.region is not None
    assert config.region.size_scale == "linear"


def with_gpt2(directory: Path) -> Checkpoint:
    """A tiny checkpoint of a width that is not the 0.5B's, with GPT-2's tokenizer; its config tells heads only."""
    built = Checkpoint(directory, replace(TINY, text=replace(TINY.text, vocab=50_257)))
    built.tokenizer = gpt2()
    assert built.json is not None
    del built.json["tokenizer"]
    return built


CONFIG_PY = """
from dataclasses import dataclass, field
from typing import Dict, List, Optional
raise SystemExit("nobody may run this")

@dataclass(frozen=True)
class TextConfig:
    dim: int = 2048

@dataclass(frozen=True)
class TokenizerConfig:
    bos_id: int = {end}
    eos_id: int = {end}
    computed: int = 1 + int("2")
    templates: Dict[str, Optional[Dict[str, List[int]]]] = field(
        default_factory=lambda: {{
            "caption": {{"short": [198, 198, 16438, 8305, 25], {long}}},
            "query": {{"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]}},
            "detect": None,
        }}
    )
"""


@pytest.mark.parametrize(("long", "scale"), [("", "linear"), ('"long": [198, 198, 14617, 8305, 25]', "log2")])
def test_prompts_from_the_snapshots_python(tmp_path: Path, staging: Path, long: str, scale: str) -> None:
    """Read from the syntax tree, never run; the captions tell the scale of sizes."""
    source = with_gpt2(tmp_path / "source").write()
    (source / "config.py").write_text(CONFIG_PY.format(end=50256, long=long))
    config, _ = imported(source, staging)
    assert config.templates.caption["short"] == [198, 198, 16438, 8305, 25]
    assert ("long" in config.templates.caption) == bool(long)
    assert config.templates.query == {"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]}
    assert (config.templates.detect, config.templates.point) == (None, None)
    assert config.region is not None
    assert config.region.size_scale == scale


def test_the_stale_tokenizer_of_june_2025_is_refused(tmp_path: Path, staging: Path) -> None:
    """The snapshot's own tokenizer.json is GPT-2's, but its config.py says that the end token is 0."""
    source = with_gpt2(tmp_path / "source").write()
    (source / "config.py").write_text(CONFIG_PY.format(end=0, long=""))
    with pytest.raises(
        ModelError, match=r"config\.py says that <\|endoftext\|> is token 0, in tokenizer\.json it is 50256.*starmie-v1"
    ):
        imported(source, staging)


def test_a_2b_with_the_tokenizer_of_gpt2_and_nothing_else_is_refused(tmp_path: Path, staging: Path) -> None:
    source = with_gpt2(tmp_path / "source").write()
    with pytest.raises(ModelError, match=r"with different prompts.*config\.py.*starmie-v1"):
        imported(source, staging)


def test_an_unknown_tokenizer_is_refused(tmp_path: Path, staging: Path) -> None:
    checkpoint = with_gpt2(tmp_path / "source")
    checkpoint.tokenizer = word_level({"<|endoftext|>": 7, "a": 1})
    source = checkpoint.write()
    with pytest.raises(ModelError, match=r"neither the tokenizer of GPT-2 .* nor moondream/starmie-v1"):
        imported(source, staging)


def test_a_config_inside_a_hugging_face_one(checkpoint: Checkpoint, staging: Path) -> None:
    checkpoint.json = {"architectures": ["HfMoondream"], "model_type": "moondream1", "config": checkpoint.json}
    config, _ = imported(checkpoint.write(), staging)
    assert config.text.heads == 4


def test_a_causal_checkpoint(tmp_path: Path, staging: Path) -> None:
    """Upstream's prefix_attn of 0."""
    config, _ = imported(Checkpoint(tmp_path / "source", replace(TINY, mask="causal")).write(), staging)
    assert config.mask == "causal"


def test_a_tokenizer_made_by_transformers(checkpoint: Checkpoint, staging: Path) -> None:
    """vocab.json and merges.txt, and nothing that names a class."""
    built = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "<|endoftext|>": 5}, [("a", "b"), ("Ġ", "ab")]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    checkpoint.tokenizer = None
    source = checkpoint.write()
    built.model.save(str(source))
    checkpoint_json = json.loads((source / "config.json").read_text())
    checkpoint_json["tokenizer"] |= {"bos_id": 5, "eos_id": 5}
    (source / "config.json").write_text(json.dumps(checkpoint_json))
    import_checkpoint(source, staging, "mine")
    made = Tokenizer.from_file(str(staging / "tokenizer.json"))
    assert made.encode("ab ab", add_special_tokens=False).ids == built.encode("ab ab").ids == [2, 4]
    assert made.token_to_id("<|endoftext|>") == 5


def test_the_rotary_pairs_are_upstreams() -> None:
    """Attention scores by upstream's rule: complex numbers (i, i + half), written back interleaved."""
    generator = torch.Generator().manual_seed(3)
    heads, positions, width, half = 2, 11, 16, 4
    q, k = torch.randn(2, 1, heads, positions, width, generator=generator, dtype=torch.float64)
    place = torch.arange(positions)

    def upstreams(x: Tensor) -> Tensor:
        angles = place[:, None] * 10000.0 ** (-torch.arange(half) / half)
        turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(
            torch.ones_like(angles), angles
        ).to(torch.complex128)
        return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., 2 * half :]], dim=-1)

    table = rotary_table(place, 2 * half).double()
    theirs = upstreams(q) @ upstreams(k).mT
    ours = rotate(q.clone(), table) @ rotate(k.clone(), table).mT
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(q @ k.mT, theirs, atol=1e-1)


# ---- what is refused ------------------------------------------------------------------------------------


def drop(name: str) -> Edit:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Edit:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("text.blocks.1.attn.proj.bias"), r"missing: text\.blocks\.1\.attn\.proj\.bias \(32,\)"),
        (drop("vision.pos_emb"), "no tensor vision.pos_emb: this is not a complete Moondream 2"),
        (put("text.blocks.0.tau.wq", torch.ones(2)), r"unexpected: model\.text\.blocks\.0\.tau\.wq"),
        (put("adapter.lora_A", torch.ones(2)), r"model\.adapter\.lora_A: no tensor of a Moondream 2 that we know"),
        (put("text.post_ln.bias", torch.ones(31)), r"text\.post_ln\.bias has shape \(31,\), \(32,\) is expected"),
        (put("text.post_ln.bias", torch.ones(32, dtype=torch.int8)), "dtype I8, which is not one of F32, F16, BF16"),
        (put("text.post_ln.bias", torch.full((32,), torch.nan)), "bias has numbers that are not finite"),
        (put("vision.pos_emb", torch.ones(1, 99, 24)), "prefix_attn is 101; 0 or 100"),
        (put("vision.patch_emb.weight", torch.ones(24, 28)), r"vision\.patch_emb\.weight: 9 .*|is expected"),
        (put("_orig_mod.text.wte", torch.ones(96, 32)), r"text\.wte is also in"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(checkpoint: Checkpoint, staging: Path, edit: Edit, words: str) -> None:
    edit(checkpoint.tensors)
    with pytest.raises(ModelError, match=words):
        imported(checkpoint.write(), staging)
    assert not (staging / "model.safetensors").exists()


def test_missing_blocks_are_named(checkpoint: Checkpoint, staging: Path) -> None:
    checkpoint.tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("text.blocks.1.")}
    with pytest.raises(ModelError, match="text: no tensors of block 1"):
        imported(checkpoint.write(), staging)


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "moondream.ckpt", "model.safetensors"])
def test_a_pickle_is_refused(tmp_path: Path, staging: Path, name: str) -> None:
    """By name, or by content where the name lies; nothing of it is opened."""
    marker = tmp_path / "opened"
    torch.save({"vision.pos_emb": torch.ones(2), "marker": str(marker)}, tmp_path / name)
    with pytest.raises(ModelError, match=r"is a pickle: opening one runs whatever code is in it"):
        import_checkpoint(tmp_path / name, staging, "mine")
    with pytest.raises(ModelError, match="is a pickle"):
        import_checkpoint(tmp_path, staging, "mine")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path, protocol: int) -> None:
    """The first bytes of a safetensors file are a number, and 640 is 80 02 in hex."""
    length = 0x80 + (protocol << 8)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert load_file(path)["a"].tolist() == [0.0]
    assert path.read_bytes().startswith(bytes([0x80, protocol]))
    refuse_pickle(path)


def test_a_pickle_beside_safetensors_is_left_alone(checkpoint: Checkpoint, staging: Path) -> None:
    source = checkpoint.write()
    torch.save({"a": torch.ones(2)}, source / "pytorch_model.bin")
    import_checkpoint(source, staging, "mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "../evil.safetensors"}}', "names '../evil.safetensors', which is not a file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"is not complete: \['gone.safetensors'\]"),
        ('{"weight_map": {"a": "model.safetensors"}}', "in none of the files: a"),
        ('{"weight_map": {}}', "is not complete"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_index(checkpoint: Checkpoint, staging: Path, text: str, words: str) -> None:
    source = checkpoint.write()
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        imported(source, staging)


def test_several_files_without_an_index(checkpoint: Checkpoint, staging: Path) -> None:
    source = checkpoint.write()
    for name in ("a", "b"):
        (source / f"{name}.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"several safetensors files \(a.safetensors, b.safetensors\)"):
        imported(source, staging)


def test_a_truncated_file(checkpoint: Checkpoint, staging: Path) -> None:
    source = checkpoint.write()
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="not a usable safetensors file"):
        imported(source, staging)


def test_no_tokenizer(checkpoint: Checkpoint, staging: Path) -> None:
    checkpoint.tokenizer = None
    with pytest.raises(ModelError, match=r"no tokenizer.json beside the weights \(nor vocab.json and merges.txt\)"):
        imported(checkpoint.write(), staging)


def test_nothing_there(tmp_path: Path, staging: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        imported(tmp_path / "staging", staging)
    with pytest.raises(ModelError, match="no such file or directory"):
        imported(tmp_path / "nowhere", staging)


def test_the_older_layout_needs_a_config(checkpoint: Checkpoint, staging: Path) -> None:
    checkpoint.json = None
    named = {older(name): tensor.T if "_features" in name else tensor for name, tensor in checkpoint.tensors.items()}
    with pytest.raises(ModelError, match=r"may be of 2024 .* config_md05\.json or config_md2\.json"):
        imported(checkpoint.write(named), staging)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("text", "prefix_attn", 500, "prefix_attn is 500; 0 or 101"),
        ("text", "n_heads", "four", "n_heads is 'four', a whole number is expected"),
        ("text", "dim", 64, "dim is 64, the tensors beside it have 32"),
        ("vision", "max_crops", 20, "max_crops is 20; this program cuts pictures with 12 only"),
        ("tokenizer", "bos_id", None, "bos_id and eos_id are needed"),
        ("tokenizer", "eos_id", 9, r"<\|endoftext\|> is token 9, in tokenizer.json it is 0"),
        ("tokenizer", "templates", {"caption": {"short": "hello"}}, "caption: lists of token ids are expected"),
        ("tokenizer", "templates", {"caption": {"short": [96]}}, r"short has \[96\], outside the vocab of 96"),
    ],
)
def test_a_config_that_does_not_fit(
    checkpoint: Checkpoint, staging: Path, section: str, key: str, value: object, words: str
) -> None:
    assert checkpoint.json is not None
    checkpoint.json[section][key] = value  # type: ignore[index]  # plain JSON
    with pytest.raises(ModelError, match=words):
        imported(checkpoint.write(), staging)
    assert not (staging / "model.safetensors").exists()


def test_transformers_is_not_loaded_where_it_does_not_serve(checkpoint: Checkpoint, staging: Path) -> None:
    loaded = "transformers" in sys.modules
    import_checkpoint(checkpoint.write(), staging, "mine")
    assert ("transformers" in sys.modules) == loaded
