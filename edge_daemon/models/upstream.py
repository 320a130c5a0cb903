"""What the files beside upstream's weights say of a checkpoint: special tokens, prompts, mask, heads.

Read as data, never run: a `config.json` (or `config_md05.json`, `config_md2.json`) in upstream's form, also inside
the `config` key of a Hugging Face one; else the defaults of the `TokenizerConfig` class in the `config.py` that
the hub's snapshots carry, from its syntax tree; else, where the tokenizer leaves no doubt, what is known of it.
Nothing is assumed in silence: a checkpoint that is none of these is refused.

Sources: upstream's moondream/config/*.json and the history of torch/config.py and torch/moondream.py.
  * 2025-01-09: tokens of GPT-2, captions short and normal, sizes linear; also the 0.5B.
  * 2025-03-27, 2025-04-14: tokens of GPT-2, captions also long, sizes on a logarithmic scale.
  * 2025-06-21: tokens of moondream/starmie-v1, sizes on a logarithmic scale. The repository still carries the
    older tokenizer.json beside these weights, which do not fit it.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.errors import ModelError
from edge_daemon.moondream.config import OVERLAP_MARGIN, Mask, SizeScale, Templates, Tokens

JSON_NAMES = ("config.json", "config_md05.json", "config_md2.json")
PYTHON_NAME = "config.py"
END = "<|endoftext|>"
STARMIE_MARKS = {END: 0, "<|md_reserved_0|>": 1, "<|md_reserved_1|>": 2, "<|md_reserved_2|>": 3}
GPT2_MARKS = {END: 50256, "Ċ": 198, "ĊĊ": 628, ":": 25}
"""Tokens and their ids (Ċ is a line feed) that tell the two vocabularies."""
MOST_TILES = 12
"""Local crops of the overlap scheme (upstream's vision config, `max_crops`)."""
HALF_BILLION_DIM = 1024

STARMIE = (
    Tokens(bos=0, eos=0, answer=3),
    Templates(
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
GPT2 = (
    Tokens(bos=50256, eos=50256),
    Templates(
        caption={"short": [198, 198, 16438, 8305, 25], "normal": [198, 198, 24334, 1159, 25]},
        query={"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]},
        detect={"prefix": [198, 198, 47504, 25], "suffix": [628]},
    ),
)
"""Of the 0.5B, which its vendor says was not trained for pointing."""


@dataclass(frozen=True)
class Conventions:
    """What shapes do not tell."""

    tokens: Tokens
    templates: Templates
    mask: Mask
    size_scale: SizeScale
    text_heads: int | None = None
    vision_heads: int | None = None
    max_context: int | None = None


def conventions(directory: Path, vocabulary: dict[str, int], text_dim: int, older: bool, patches: int) -> Conventions:
    """Everything that the files in `directory` say, checked against the tokenizer's `vocabulary`.

    `older` is whether the tensors have the older layout. Raises ModelError when nothing says it, or when what
    is said does not fit the tokenizer.
    """
    stated = _stated(directory, text_dim)
    if older and "text" not in stated:
        raise ModelError(
            f"{directory}: tensors of the older layout may be of 2024 (another mask, other prompts) or of 2025, and "
            f"nothing here says which: put upstream's config_md05.json or config_md2.json beside them"
        )
    path, section = stated.get("tokenizer", (directory / "tokenizer.json", {}))
    if section:
        tokens, templates = _tokens(section, path), _templates(section.get("templates"), path)
    else:
        tokens, templates = _by_vocabulary(vocabulary, text_dim, path)
    _compare(tokens, vocabulary, path)
    linear = tokens.eos == GPT2_MARKS[END] and "long" not in templates.caption
    text_path, text = stated.get("text", (path, {}))
    vision_path, vision = stated.get("vision", (path, {}))
    _refuse_other_crops(vision, vision_path)
    return Conventions(
        tokens=tokens,
        templates=templates,
        mask=_mask(text.get("prefix_attn", 1 + patches), 1 + patches, text_path),
        size_scale="linear" if linear else "log2",
        text_heads=_number(text, "n_heads", text_path),
        vision_heads=_number(vision, "enc_n_heads", vision_path),
        max_context=_number(text, "max_context", text_path),
    )


def _stated(directory: Path, text_dim: int) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The sections that files in upstream's form have, and which file; of a text model of this width only."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name in JSON_NAMES:
        data = read_json(directory / name)
        data = data["config"] if isinstance(data.get("config"), dict) else data
        sections = {key: data[key] for key in ("text", "vision", "tokenizer") if isinstance(data.get(key), dict)}
        dim = sections.get("text", {}).get("dim", text_dim)
        if dim != text_dim and name == "config.json":
            raise ModelError(f"{directory / name}: text: dim is {dim!r}, the tensors beside it have {text_dim}")
        if dim == text_dim:
            found = {key: (directory / name, section) for key, section in sections.items()} | found
    if section := _from_python(directory / PYTHON_NAME):
        found.setdefault("tokenizer", (directory / PYTHON_NAME, section))
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing when there is no such file. Raises ModelError when it is not JSON."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _from_python(path: Path) -> dict[str, Any]:
    """The literal defaults of `class TokenizerConfig` in upstream's config.py, by the names that the JSON has."""
    if not path.is_file():
        return {}
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise ModelError(f"{path}: no Python that can be read: {error}") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TokenizerConfig"]
    fields = [node for found in classes for node in found.body if isinstance(node, ast.AnnAssign)]
    return {field.target.id: _literal(field.value) for field in fields if isinstance(field.target, ast.Name)}


def _literal(value: ast.expr | None) -> Any:
    """A literal default, also of `field(default_factory=lambda: …)`; None for what is computed."""
    for keyword in value.keywords if isinstance(value, ast.Call) else []:
        if keyword.arg == "default_factory" and isinstance(keyword.value, ast.Lambda):
            value = keyword.value.body
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None


def _by_vocabulary(vocabulary: dict[str, int], text_dim: int, path: Path) -> tuple[Tokens, Templates]:
    """Prompts by the tokenizer alone, where it leaves one possibility."""
    if all(vocabulary.get(mark) == token for mark, token in STARMIE_MARKS.items()):
        return STARMIE
    gpt2 = all(vocabulary.get(mark) == token for mark, token in GPT2_MARKS.items())
    if gpt2 and text_dim == HALF_BILLION_DIM:
        return GPT2
    if gpt2:
        raise ModelError(
            f"{path}: this is the tokenizer of GPT-2; releases of the 2B with different prompts come with it, one of "
            f"them (2025-06-21) by mistake, so nothing says which this is: put the snapshot's own config.py beside the "
            f"weights, and for 2025-06-21 the tokenizer.json of moondream/starmie-v1"
        )
    raise ModelError(
        f"{path}: neither the tokenizer of GPT-2 ({END} is {GPT2_MARKS[END]}) nor moondream/starmie-v1 ({END} is 0, "
        f"<|md_reserved_0|> is 1), and no config.json in upstream's form says the prompts"
    )


def _compare(tokens: Tokens, vocabulary: dict[str, int], path: Path) -> None:
    """The end token of the config must be the tokenizer's."""
    end = vocabulary.get(END)
    if end is not None and end != tokens.eos:
        hint = "; these weights need the tokenizer.json of moondream/starmie-v1" if tokens.eos == 0 else ""
        raise ModelError(f"{path} says that {END} is token {tokens.eos}, in tokenizer.json it is {end}{hint}")


def _tokens(section: dict[str, Any], path: Path) -> Tokens:
    values = {key: _number(section, f"{key}_id", path) for key in ("bos", "eos", "answer")}
    bos, eos = values["bos"], values["eos"]
    if bos is None or eos is None:
        raise ModelError(f"{path}: tokenizer: bos_id and eos_id are needed, found {sorted(section)}")
    return Tokens(bos=bos, eos=eos, answer=values["answer"])


def _templates(data: Any, path: Path) -> Templates:
    """Prompts as upstream writes them. Tasks that we do not know are left out; a missing one is None."""
    if not isinstance(data, dict) or not isinstance(data.get("caption"), dict):
        raise ModelError(f"{path}: tokenizer: templates: an object with caption is expected, found {data!r}")
    tasks = {task: data.get(task) for task in ("caption", "query", "detect", "point")}
    for task, parts in tasks.items():
        lists = list(parts.values()) if isinstance(parts, dict) else [parts] if parts is not None else []
        if not all(isinstance(tokens, list) and all(isinstance(t, int) for t in tokens) for tokens in lists):
            raise ModelError(f"{path}: tokenizer: templates: {task}: lists of token ids are expected, found {parts!r}")
    return Templates(tasks["caption"] or {}, tasks["query"], tasks["detect"], tasks["point"])


def _mask(prefix: Any, expected: int, path: Path) -> Mask:
    """Upstream's `prefix_attn`: how many positions, BOS and picture, see each other."""
    if prefix not in (0, expected):
        raise ModelError(f"{path}: text: prefix_attn is {prefix!r}; 0 or {expected} (BOS and the picture) is expected")
    return "prefix" if prefix else "causal"


def _number(section: dict[str, Any], key: str, path: Path) -> int | None:
    value = section.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ModelError(f"{path}: {key} is {value!r}, a whole number is expected")
    return value


def _refuse_other_crops(vision: dict[str, Any], path: Path) -> None:
    wanted = {"overlap_margin": OVERLAP_MARGIN, "max_crops": MOST_TILES, "in_channels": 3}
    for key, value in wanted.items():
        if vision.get(key, value) != value:
            raise ModelError(f"{path}: vision: {key} is {vision[key]!r}; this program cuts pictures with {value} only")
