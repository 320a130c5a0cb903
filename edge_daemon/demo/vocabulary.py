"""The words of `demo-shapes` and its tokenizer.

One token is one word with the space before it, or one punctuation mark, so that any slice of an answer decodes
by itself and the pieces add up. Questions are normalised first: case, punctuation and American spelling
do not matter. A word outside the vocabulary becomes `<unk>`. Control tokens are plain vocabulary entries that no
text can spell: the pre-tokenizer takes "<eos>" apart.
"""

from __future__ import annotations

import re
import string

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from edge_daemon.demo.language import Target, normal_caption, place, short_caption
from edge_daemon.demo.questions import PHRASES, REFUSAL, SYNONYMS
from edge_daemon.demo.scenes import BACKGROUNDS, COLOURS, DIAMETERS, SHAPES, Scene, Thing
from edge_daemon.moondream.config import Templates, Tokens

UNKNOWN, EOS, BOS, BOX = "<unk>", "<eos>", "<bos>", "<box>"
CAPTION, SHORT, NORMAL = "<caption>", "<short>", "<normal>"
QUESTION, ANSWER, DETECT, POINT = "<question>", "<answer>", "<detect>", "<point>"
CONTROLS = (UNKNOWN, EOS, BOS, BOX, CAPTION, SHORT, NORMAL, QUESTION, ANSWER, DETECT, POINT)
"""In the order of their ids. `<box>` says that one more box or point follows."""
SPELLINGS = {"color": "colour", "gray": "grey", "center": "centre", "what's": "what is", "where's": "where is"}
"""Read as."""
PIECE = re.compile(r"\s*\w+|[^\w\s]")
SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""How byte-level tokenizers write a space."""


def pieces(text: str) -> list[str]:
    """The tokens of an answer, as the vocabulary writes them: "A star." → "ĠA", "Ġstar", "."."""
    return [piece.replace(" ", SPACE) for piece in PIECE.findall(f" {text}")]


def _questions() -> list[str]:
    """Texts that hold every word of every question, as the normaliser leaves them."""
    fields = {name for _, name, _, _ in string.Formatter().parse("".join(sum(PHRASES.values(), ()))) if name}
    texts = [phrase.format(**dict.fromkeys(fields, "")) for phrases in PHRASES.values() for phrase in phrases]
    for shape in (*SHAPES, None):
        texts += [Target(shape).name, Target(shape).plural]
    texts += [word for words in SYNONYMS.values() for word in words]
    return [*texts, "a an left right above below", *COLOURS, *BACKGROUNDS, *DIAMETERS]


def _answers() -> list[str]:
    """Texts that hold every word of every answer, with the capitals that begin one."""
    texts = [
        REFUSAL,
        "Yes",
        "No",
        "Nothing",
        "There is no shape.",
        "There are 2 shapes.",
        *(Target(shape).plural for shape in SHAPES),
        "The",
        "0 1 2 3 4",
    ]
    for words in (COLOURS, BACKGROUNDS, DIAMETERS):
        texts += [word.capitalize() for word in words]
    for x in (0.1, 0.5, 0.9):
        for y in (0.1, 0.5, 0.9):
            thing = Thing("star", "red", "small", x, y, 0.1, 0.1, (0, 0, 0))
            texts.append(place(thing).capitalize())
            for count in (1, 3):
                scene = Scene((thing,) * count, "grey", (0, 0, 0), 1, 1)
                texts += [short_caption(scene), normal_caption(scene)]
    texts += [" ".join((*SHAPES, *COLOURS, *BACKGROUNDS, *DIAMETERS))]
    return [*texts, "An orange star left of", "a blue star above"]


def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    normaliser = _normaliser()
    words = {piece for text in _answers() for piece in pieces(text)}
    words |= {piece for text in _questions() for piece in pieces(normaliser.normalize_str(text))}
    return {token: index for index, token in enumerate([*CONTROLS, *sorted(words)])}


def _normaliser() -> normalizers.Normalizer:
    """Lower case, British spelling, no punctuation, single spaces."""
    spellings = [normalizers.Replace(Regex(rf"\b{was}\b"), becomes) for was, becomes in SPELLINGS.items()]
    return normalizers.Sequence(
        [
            normalizers.Lowercase(),
            *spellings,
            normalizers.Replace(Regex(r"""[\s.,:;!?"'’()]+"""), " "),
            normalizers.Strip(),
        ]
    )


def build_tokenizer() -> Tokenizer:
    """The tokenizer, ready to be saved as `tokenizer.json`."""
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.normalizer = _normaliser()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def special_tokens(ids: dict[str, int]) -> Tokens:
    """Where a sequence begins and ends."""
    return Tokens(bos=ids[BOS], eos=ids[EOS])


def templates(ids: dict[str, int]) -> Templates:
    """The prompts of all tasks."""

    def around(control: str) -> dict[str, list[int]]:
        return {"prefix": [ids[control]], "suffix": [ids[ANSWER]]}

    return Templates(
        caption={
            "short": [ids[CAPTION], ids[SHORT], ids[ANSWER]],
            "normal": [ids[CAPTION], ids[NORMAL], ids[ANSWER]],
        },
        query=around(QUESTION),
        detect=around(DETECT),
        point=around(POINT),
    )
