"""Scenes are the same from the same seed, never ambiguous, and are what the words say about them.

What the words mean is worked out here a second time, from the text and the coordinates alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edge_daemon.demo.language import normal_caption, short_caption
from edge_daemon.demo.questions import KINDS, REFUSAL, random_question
from edge_daemon.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZES,
    SHAPES,
    Scene,
    Thing,
    draw,
    random_scene,
    sample_pictures,
)
from edge_daemon.demo.vocabulary import build_tokenizer, pieces

seeds = st.integers(0, 2**32)
many = settings(max_examples=200, deadline=None, derandomize=True)
few = settings(max_examples=25, deadline=None, derandomize=True)


def scene_of(seed: int) -> Scene:
    return random_scene(random.Random(seed))


def pixels_of(scene: Scene) -> NDArray[np.int16]:
    return np.asarray(draw(scene), dtype=np.int16)


@few
@given(seeds)
def test_a_seed_gives_one_scene_and_one_picture(seed: int) -> None:
    assert scene_of(seed) == scene_of(seed)
    assert draw(scene_of(seed)).tobytes() == draw(scene_of(seed)).tobytes()


def test_seeds_give_different_scenes_of_every_kind() -> None:
    scenes = [scene_of(seed) for seed in range(500)]
    assert len(set(scenes)) == 500
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {thing.shape for scene in scenes for thing in scene.objects} == set(SHAPES)
    assert {thing.colour for scene in scenes for thing in scene.objects} == set(COLOURS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {(scene.width_px, scene.height_px) for scene in scenes} == set(PICTURE_SIZES)


@many
@given(seeds)
def test_a_scene_is_never_ambiguous(seed: int) -> None:
    scene = scene_of(seed)
    for thing in scene.objects:
        assert all(0 < edge < 1 for edge in thing.box), "cut off"
        assert all(min(abs(c - 1 / 3), abs(c - 2 / 3)) > 0.03 for c in (thing.x, thing.y)), "between two ninths"
        diameter = thing.width * scene.width_px / min(scene.width_px, scene.height_px)
        assert diameter < 0.16 if thing.size == "small" else diameter > 0.25, "neither small nor large"
        assert thing.colour != scene.background
    for a, b in combinations(scene.objects, 2):
        apart_x = max(a.box[0], b.box[0]) - min(a.box[2], b.box[2])
        apart_y = max(a.box[1], b.box[1]) - min(a.box[3], b.box[3])
        assert max(apart_x, apart_y) > 0.02, "overlap"
    if len(scene.objects) == 2:
        a, b = scene.objects
        assert abs(abs(a.x - b.x) - abs(a.y - b.y)) >= 0.03, "neither beside nor above"
    lines = [(int(thing.y * 9), thing.x) for thing in scene.objects]
    assert lines == sorted(lines)
    assert all(b[0] > a[0] or b[1] - a[1] >= 0.06 for a, b in pairwise(lines)), "no plain order"


def test_no_two_colours_are_alike() -> None:
    named = {**COLOURS, **{f"{name} background": rgb for name, rgb in BACKGROUNDS.items()}}
    for (a, rgb_a), (b, rgb_b) in combinations(named.items(), 2):
        distance = sum((x - y) ** 2 for x, y in zip(rgb_a, rgb_b, strict=True)) ** 0.5
        assert distance > 80 or a.split()[0] == b.split()[0] or "background" in a, (a, b, distance)


@few
@given(seeds)
def test_the_picture_shows_what_the_scene_says(seed: int) -> None:
    scene = scene_of(seed)
    picture = pixels_of(scene)
    assert picture.shape == (scene.height_px, scene.width_px, 3)
    assert tuple(picture[0, 0]) == scene.background_rgb
    for thing in scene.objects:
        x_px, y_px = int(thing.x * scene.width_px), int(thing.y * scene.height_px)
        assert tuple(picture[y_px, x_px]) == thing.rgb
        nearest = min(
            COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], thing.rgb, strict=True))
        )
        assert nearest == thing.colour


@few
@given(seeds)
def test_boxes_are_where_the_pixels_are(seed: int) -> None:
    scene = scene_of(seed)
    picture = pixels_of(scene)
    size_px = np.array([scene.width_px, scene.height_px, scene.width_px, scene.height_px])
    for thing in scene.objects:
        x_min, y_min, x_max, y_max = np.round(np.array(thing.box) * size_px).astype(int) + np.array([-3, -3, 3, 3])
        x_min, y_min = max(0, x_min), max(0, y_min)
        inked = (np.abs(picture[y_min:y_max, x_min:x_max] - picture[0, 0]) > 12).any(axis=-1)
        rows, columns = np.nonzero(inked)
        seen = [x_min + columns.min(), y_min + rows.min(), x_min + columns.max() + 1, y_min + rows.max() + 1]
        assert np.abs(np.array(seen) - np.array(thing.box) * size_px).max() <= 2


# The second reading of the words.

NAME = re.compile(rf"(?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@many
@given(seeds)
def test_the_short_caption_is_true(seed: int) -> None:
    scene = scene_of(seed)
    text = short_caption(scene)
    assert text.endswith(f" on a {scene.background} background.")
    named = NAME.findall(text)
    assert [(colour, shape) for _, colour, shape in named] == [(t.colour, t.shape) for t in scene.objects]
    first, last = scene.objects[0], scene.objects[-1]
    assert [size for size, _, _ in named] == ([first.size] if len(named) == 1 else [""] * len(named))
    if len(named) == 2:
        beside, above = "left of" in text, "above" in text
        assert (beside, above) == (
            (last.x - first.x) > abs(last.y - first.y),
            (last.y - first.y) > abs(last.x - first.x),
        )
    if len(named) == 3:
        assert first.y < last.y + 0.04


@many
@given(seeds)
def test_the_normal_caption_is_true(seed: int) -> None:
    scene = scene_of(seed)
    text = normal_caption(scene)
    head, _, listing = text.partition(": ")
    assert f" {len(scene.objects)} shape" in head
    assert head.endswith(f"{scene.background} background")
    named = re.split(r", | and (?=an? )", listing.rstrip("."))
    described = [" ".join(words) for name in named for words in NAME.findall(name)]
    assert described == [f"{t.size} {t.colour} {t.shape}" for t in scene.objects]
    assert [cell(thing) for thing in scene.objects] == [words_of_cell(n) for n in named]


def cell(thing: Thing) -> tuple[int, int]:
    """Column and row of a 3 × 3 grid."""
    return sum(thing.x > third for third in (1 / 3, 2 / 3)), sum(thing.y > third for third in (1 / 3, 2 / 3))


def words_of_cell(text: str) -> tuple[int, int]:
    words = set(text.lower().split())
    return (
        0 if "left" in words else 2 if "right" in words else 1,
        0 if "top" in words else 2 if "bottom" in words else 1,
    )


def words_of(text: str) -> list[str]:
    """Plain words, singular, one spelling."""
    same = {"big": "large", "violet": "purple", "color": "colour", "object": "shape", "thing": "shape"}
    nouns = {*SHAPES, "shape", "object", "thing"}
    words = [word[:-1] if word[:-1] in nouns else word for word in re.findall(r"\w+", text.lower())]
    return [same.get(word, word) for word in words]


def meant(words: list[str], scene: Scene) -> list[Thing]:
    """All things that fit every attribute among the words."""
    attributes = {*SHAPES, *COLOURS, "small", "large"} & set(words)
    return [thing for thing in scene.objects if attributes <= {thing.shape, thing.colour, thing.size}]


def expected(kind: str, text: str, scene: Scene) -> str | tuple[int, int]:
    """The answer as this file understands the question; a place as its cell."""
    words = words_of(text)
    if kind == "size":
        text = re.sub(r"(large|big|small) or (large|big|small)|^How (large|big)", "", text)
        words = words_of(text)
    if kind == "is_colour":
        *words, asked = words
    found = meant(words, scene)
    if kind == "count":
        return str(len(found))
    if kind == "exists":
        return "Yes" if found else "No"
    if len(found) != 1:
        return f"{len(found)}"
    thing = found[0]
    if kind == "is_colour":
        return "Yes" if thing.colour == asked else "No"
    if kind == "where":
        return cell(thing)
    return {"colour": thing.colour, "shape": thing.shape, "size": thing.size}[kind].lower()


def answers(kind: str) -> Iterator[tuple[str, str, Scene]]:
    """Many questions of one kind with their answers."""
    (ask,) = (k for k in KINDS if k.__name__ == f"_{kind}")
    rng = random.Random(kind)
    asked = [(scene, ask(scene, rng)) for scene in (random_scene(rng) for _ in range(600))]
    questions = [(question, scene) for scene, question in asked if question is not None]
    assert len(questions) > 200
    for question, scene in questions:
        assert question.kind == kind
        yield question.text, question.answer, scene


@pytest.mark.parametrize("kind", ["colour", "shape", "size", "where", "count", "exists", "is_colour"])
def test_answers_are_true(kind: str) -> None:
    for text, answer, scene in answers(kind):
        right = expected(kind, text, scene)
        if answer.startswith("There is no"):
            assert right == "0", (text, answer, scene)
        elif answer.startswith("There are"):
            assert right == answer.split()[2], (text, answer, scene)
        elif isinstance(right, tuple):
            assert right == words_of_cell(answer), (text, answer, scene)
        else:
            assert right.lower() == answer.lower().removeprefix("a "), (text, answer, scene)


def test_relations_are_true() -> None:
    signs = {"left": (1, 0), "right": (-1, 0), "above": (0, 1), "over": (0, 1), "higher": (0, 1)}
    signs |= {"below": (0, -1), "under": (0, -1), "lower": (0, -1)}
    for text, answer, scene in answers("relation"):
        word = next(word for word in words_of(text) if word in signs)
        before, after = text.split(f" {word} ")
        (a,), (b,) = meant(words_of(before), scene), meant(words_of(after), scene)
        along = signs[word][0] * (b.x - a.x) + signs[word][1] * (b.y - a.y)
        assert abs(along) >= 0.06
        assert answer == ("Yes" if along > 0 else "No"), (text, answer, scene)


def test_unknown_words_are_refused_and_only_they() -> None:
    tokenizer = build_tokenizer()
    unknown = tokenizer.token_to_id("<unk>")
    rng = random.Random(5)
    for _ in range(500):
        question = random_question(random_scene(rng), rng)
        ids = tokenizer.encode(question.text, add_special_tokens=False).ids
        assert (unknown in ids) == (question.kind == "foreign") == (question.answer == REFUSAL), question


def test_every_answer_decodes_token_by_token() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    rng = random.Random(6)
    for _ in range(300):
        scene = random_scene(rng)
        for text in (short_caption(scene), normal_caption(scene), random_question(scene, rng).answer):
            tokens = [ids[piece] for piece in pieces(text)]
            assert "".join(tokenizer.decode([token]) for token in tokens) == f" {text}"
            assert tokenizer.decode(tokens) == f" {text}"


@pytest.mark.parametrize(
    "asked",
    [
        "What colour is the grey star?",
        "what color is the gray star",
        "WHAT COLOUR IS THE GREY STAR ?!",
        " What colour, is the  grey star. ",
    ],
)
def test_case_spelling_and_punctuation_do_not_matter(asked: str) -> None:
    tokens = build_tokenizer().encode(asked, add_special_tokens=False).tokens
    assert tokens == ["Ġwhat", "Ġcolour", "Ġis", "Ġthe", "Ġgrey", "Ġstar"]


def test_control_tokens_cannot_be_typed() -> None:
    tokenizer = build_tokenizer()
    typed = tokenizer.encode("<eos> <box> <answer>", add_special_tokens=False)
    assert set(typed.tokens) <= {"<unk>", "Ġ<unk>"}


def test_sample_pictures_are_files_with_their_captions(tmp_path: Path) -> None:
    samples = sample_pictures(tmp_path / "new", 4, seed=3)
    assert [path.name for path, _ in samples] == ["scene-01.png", "scene-02.jpg", "scene-03.png", "scene-04.jpg"]
    assert samples == sample_pictures(tmp_path / "new", 4, seed=3)
    for path, caption in samples:
        with Image.open(path) as picture:
            assert picture.size in PICTURE_SIZES
        assert NAME.search(caption)
