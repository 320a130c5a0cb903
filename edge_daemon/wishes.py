"""What a source wants of each picture, in the words of the worker. Pure."""

from __future__ import annotations

from edge_daemon.config import ModelConfig
from edge_daemon.messages import Frame, ImageWish, Request, Task
from edge_daemon.source_config import AnySource
from edge_daemon.units import KIB


def tasks_of(source: AnySource) -> list[Task]:
    """What it wants to know."""
    caption = [] if source.caption == "none" else [Task("caption", "caption", source.caption)]
    questions = [Task(question.id, "query", question.ask) for question in source.questions]
    return caption + questions + [Task(thing.id, "detect", thing.what) for thing in source.detect]


def image_of(source: AnySource) -> ImageWish | None:
    """How it wants its pictures published, if it does."""
    image = source.image
    return ImageWish(image.quality, image.max_kib * KIB, image.boxes) if image.enabled else None


def request(frame: Frame, tasks: list[Task], image: ImageWish | None, model: ModelConfig) -> Request:
    """One picture and what is wanted of it."""
    return Request(
        width_px=frame.width_px,
        height_px=frame.height_px,
        tasks=tasks,
        max_tokens=model.max_tokens,
        temperature=model.temperature,
        top_p=model.top_p,
        payload=frame.payload,
        image=image,
    )
