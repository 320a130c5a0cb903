"""The shipped model knows its shapes, is as small as it is said to be, and is the one its report tells of."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.evaluate import SAMPLING, Figures, evaluate, iou, matched_iou
from edge_daemon.demo.evaluate import shrunk as as_the_service_sees_it
from edge_daemon.demo.questions import REFUSAL
from edge_daemon.demo.samples import Packer, batch
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.demo.train import Settings, Trainee, save, shapes_config, shrunk, train
from edge_daemon.demo.vocabulary import build_tokenizer
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.model import Moondream

SCENES = 60
"""Enough to see that the report, which is of 500, tells of this model and this code."""
MOST_BYTES = 10_000_000


@cache
def figures() -> Figures:
    """Of the shipped model; evaluated once for all tests here."""
    return evaluate(MODEL_DIR, SCENES, questions=2)


def test_short_captions_are_right() -> None:
    assert figures().short_captions >= 0.97


def test_answers_are_right() -> None:
    assert figures().answers >= 0.95


def test_boxes_are_where_the_shapes_are() -> None:
    assert figures().boxes_mean_iou >= 0.7


def test_small_jpegs_are_captioned_right() -> None:
    assert figures().jpeg_short_captions >= 0.93


def test_the_report_is_about_these_weights_and_meets_the_targets() -> None:
    report = json.loads((MODEL_DIR / "report.json").read_text())
    assert report["model_sha256"] == hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert Settings(**report["settings"]) == Settings(), "the defaults of the command are what was trained with"
    held_out = report["held_out"]
    assert held_out["scenes"] == 500
    assert held_out["short_captions"] >= 0.97
    assert held_out["answers"] >= 0.95
    assert held_out["boxes_mean_iou"] >= 0.7
    assert held_out["jpeg_short_captions"] >= 0.93


def test_the_files_are_small_and_agree_with_the_code() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= MOST_BYTES
    assert load_config(MODEL_DIR) == shapes_config()
    assert json.loads((MODEL_DIR / "tokenizer.json").read_text()) == json.loads(build_tokenizer().to_str())


def test_users_are_told_what_it_knows() -> None:
    note = load_config(MODEL_DIR).note
    assert "coloured shapes" in note
    assert "nothing else" in note


@pytest.mark.parametrize("question", ["Who is the president?", "What is the weather?", "Wo ist der Kreis?"])
def test_foreign_words_are_refused(question: str) -> None:
    model = Moondream(MODEL_DIR)
    model.encode(Image.new("RGB", (512, 384), "white"))
    assert model.query(question, SAMPLING).text == REFUSAL


def test_sample_pictures_are_captioned_as_promised(tmp_path: Path) -> None:
    model = Moondream(MODEL_DIR)
    right = 0
    for path, caption in sample_pictures(tmp_path, 20, seed=11):
        with Image.open(path) as picture:
            model.encode(as_the_service_sees_it(picture.convert("RGB")))
        right += model.caption("short", SAMPLING).text == caption
    assert right >= 17


def test_training_reduces_the_loss_and_saves_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Settings(dense_steps=12, restart=24, steps=30, warm_up=4, pictures=4), tmp_path, log_every=6)
    told = [line.split() for line in capsys.readouterr().err.splitlines()]
    dense = [float(words[words.index("dense") + 1]) for words in told if "dense" in words]
    assert len(told) == 5
    assert len(dense) == 4
    assert dense[-1] < dense[0]
    model = Moondream(tmp_path)
    model.encode(Image.new("RGB", (640, 480), "grey"))
    assert model.caption("short", SAMPLING).finish_reason in {"eos", "length", "repetition"}
    assert model.detect("circle") is not None


def test_a_trained_model_says_the_same_after_saving(tmp_path: Path) -> None:
    """The cells of training and the pixels of inference are one linear map."""
    torch.manual_seed(0)
    trainee = Trainee(shapes_config())
    save(trainee, tmp_path)
    cells = torch.rand(1, 3, 126, 126)
    pixels = cells.repeat_interleave(3, 2).repeat_interleave(3, 3)
    with torch.inference_mode():
        expected = trainee.vision.encode(cells)
        found = Moondream(tmp_path).vision.encode(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_packed_tails_do_not_see_each_other() -> None:
    """A tail's hidden states are the same whatever stands in the tails beside it."""
    torch.manual_seed(0)
    trainee = Trainee(shapes_config()).eval()
    samples = batch(Packer(shrunk(shapes_config())), random.Random(1), pictures=1)
    image = torch.randn(1, trainee.config.vision.patches, trainee.config.text.dim)
    changed = {name: values.clone() for name, values in samples.rows.items()}
    changed["token"][changed["tail"] != 2] = 5
    with torch.inference_mode():
        before, after = trainee.hidden(image, samples.rows), trainee.hidden(image, changed)
    second = samples.rows["tail"] == 2
    torch.testing.assert_close(after[second], before[second])
    assert not torch.allclose(after[~second], before[~second])


def test_iou_and_matching() -> None:
    unit = (0.0, 0.0, 1.0, 1.0)
    assert iou(unit, unit) == 1
    assert iou(unit, (0.5, 0.0, 1.5, 1.0)) == pytest.approx(1 / 3)
    assert iou(unit, (2.0, 2.0, 3.0, 3.0)) == 0
    far = (2.0, 2.0, 3.0, 3.0)
    assert matched_iou([far, unit], [unit, far]) == [1, 1]
    assert sorted(matched_iou([unit], [far, unit])) == [0, 1]
    assert matched_iou([], [unit, far]) == [0, 0]
    assert matched_iou([], []) == []
