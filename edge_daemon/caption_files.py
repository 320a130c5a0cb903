"""`edge-daemon caption`: pictures from the command line through the same decoder and model as the service.

Imported late, by the command alone: it loads torch into this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from edge_daemon import memory
from edge_daemon.choices import WantedDevice, WantedPrecision
from edge_daemon.decoders import open_decoder
from edge_daemon.errors import CaptionError, PictureError
from edge_daemon.moondream import device
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.device import Choice
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Answer, Moondream, clipped
from edge_daemon.moondream.opening import open_chosen
from edge_daemon.needs import room
from edge_daemon.picture import Limits, load
from edge_daemon.shown_name import shown_name


@dataclass(frozen=True)
class Wishes:
    """What is asked about every picture."""

    length: str
    questions: list[str]
    targets: list[str]
    max_tokens: int


@dataclass(frozen=True)
class Opened:
    """A loaded model, and where it runs."""

    model: Moondream
    choice: Choice


def open_model(directory: Path, wanted: WantedDevice, precision: WantedPrecision) -> Opened:
    """Load a model. Raises ModelError, and UnavailableError for a device, precision or library that is not there."""
    config = load_config(directory)
    limits = memory.budget(memory.read_limits(None))
    choice = device.decide(directory, config, wanted, precision, partial(room, directory, config, limits))
    return Opened(open_chosen(directory, config, choice), choice)


def caption_files(opened: Opened, paths: list[Path], wishes: Wishes) -> Iterator[dict[str, Any]]:
    """One document a picture; `error` in it says why a picture or a question has no answer."""
    decoder = open_decoder()
    for path in paths:
        document: dict[str, Any] = {"file": str(path)}
        try:
            picture = load(str(path), decoder, Limits())
            frame = Image.frombuffer("RGB", (picture.width_px, picture.height_px), picture.pixels, "raw", "RGB", 0, 1)
            document |= _about(opened, frame, wishes)
            document["size"] = [picture.original_width_px, picture.original_height_px]
        except (PictureError, CaptionError) as error:
            document["error"] = str(error)
        yield document


def _about(opened: Opened, frame: Image.Image, wishes: Wishes) -> dict[str, Any]:
    """All that is wished to be known of one picture."""
    model, choice = opened.model, opened.choice
    sampling = Sampling(wishes.max_tokens)
    encode_s = model.encode(frame)
    said, *answers = _said(model, [("caption", wishes.length), *(("query", q) for q in wishes.questions)], sampling)
    found = [(target, model.detect(target)) for target in wishes.targets]
    return {
        "caption": said.text,
        "length": wishes.length,
        "finish_reason": said.finish_reason,
        "tokens": said.tokens,
        "answers": [
            {"question": question, "answer": answer.text, "finish_reason": answer.finish_reason}
            for question, answer in zip(wishes.questions, answers, strict=True)
        ],
        "objects": [{"target": target, **asdict(clipped(box))} for target, boxes in found for box in boxes],
        "model": model.config.name,
        "engine": model.config.engine,
        "device": choice.device,
        "precision": choice.precision,
        **({"note": model.config.note} if model.config.note else {}),
        "kv_tokens": model.cache.positions,
        "latency_ms": {
            "encode": round(encode_s * 1000, 1),
            "prefill": round(said.prefill_s * 1000, 1),
            "generate": round(said.generate_s * 1000, 1),
        },
    }


def _said(model: Moondream, asked: list[tuple[str, str]], sampling: Sampling) -> list[Answer]:
    """Raises CaptionError for the first that has no answer."""
    said = []
    for answer in model.ask(asked, sampling):
        if isinstance(answer, CaptionError):
            raise answer
        said.append(answer)
    return said


def in_words(document: dict[str, Any]) -> str:
    """The document for people."""
    name = shown_name(document["file"])
    if "error" in document:
        return f"{name}: {document['error']}"
    lines = [f"{name}: {document['caption']}"]
    if document["finish_reason"] != "eos":
        lines[0] += f" [cut: {document['finish_reason']}]"
    lines += [f"  {a['question']} {a['answer']}" for a in document["answers"]]
    lines += [
        f"  {o['target']} at x {o['x_min']:.2f}–{o['x_max']:.2f}, y {o['y_min']:.2f}–{o['y_max']:.2f}"
        for o in document["objects"]
    ]
    latency_ms = document["latency_ms"]
    lines.append(f"  {document['model']}, {sum(latency_ms.values()) / 1000:.2f} s")
    if "note" in document:
        lines.append(f"  note: {document['note']}")
    return "\n".join(lines)
