"""The tokenizer.json of an imported checkpoint: copied, or made of older files by transformers.

Checkpoints of 2024 may have only `vocab.json` and `merges.txt`. transformers knows how its tokenizer classes
(CodeGenTokenizer and the like) read them, and makes a tokenizer.json of them: that is the only use of transformers
in this program. It is imported only then, sees only those files, and is told to run no code of a repository.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from edge_daemon.errors import ModelError, UnavailableError
from edge_daemon.model_files import TOKENIZER

PARTS = ("vocab.json", "merges.txt")
EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PLAIN = '{"tokenizer_class": "GPT2Tokenizer"}'
"""What vocab.json and merges.txt are when nothing beside them says otherwise: byte-level BPE."""


def write_tokenizer(source: Path, staging: Path) -> dict[str, int]:
    """Put the tokenizer that lies in `source` into `staging`; its vocabulary, added tokens included.

    Raises ModelError when there is none or it is damaged, UnavailableError when transformers is needed and missing.
    """
    target = staging / TOKENIZER
    if (source / TOKENIZER).is_file():
        shutil.copyfile(source / TOKENIZER, target)
    elif all((source / part).is_file() for part in PARTS):
        _convert(source, target)
    else:
        raise ModelError(f"{source}: no {TOKENIZER} beside the weights (nor {' and '.join(PARTS)}): put it there")
    try:
        return Tokenizer.from_file(str(target)).get_vocab()
    except Exception as error:  # the library raises a bare Exception for a damaged file
        raise ModelError(f"{source / TOKENIZER}: not a usable tokenizer: {error}") from error


def _convert(source: Path, target: Path) -> None:
    """vocab.json and merges.txt to tokenizer.json."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnavailableError(
            f"{source} has {' and '.join(PARTS)} but no {TOKENIZER}; making one needs transformers: "
            f"pip install 'edge-daemon[models]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="edge-daemon-") as alone:
        for name in (*PARTS, *EXTRAS):
            if (source / name).is_file():
                shutil.copyfile(source / name, Path(alone) / name)
        if not (Path(alone) / EXTRAS[0]).exists():
            (Path(alone) / EXTRAS[0]).write_text(PLAIN, encoding="utf-8")
        try:
            loaded = AutoTokenizer.from_pretrained(alone, trust_remote_code=False, local_files_only=True)
            loaded.backend_tokenizer.save(str(target))
        except Exception as error:  # whatever a damaged file makes the library raise
            raise ModelError(f"{source}: {' and '.join(PARTS)} are not a usable tokenizer: {error}") from error
