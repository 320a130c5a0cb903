"""Random models for all tests of the model package; the large one is written once and deleted afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from edge_daemon.moondream.config import BosState, Cropping, Mask, SizeScale
from tests.model.checkpoints import HALF_BILLION, tiny_config, write_model

settings.register_profile("model", deadline=None, derandomize=True)
settings.load_profile("model")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]


@pytest.fixture
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny matrices on several threads of a busy machine take many times longer than on one."""
    before = torch.get_num_threads()
    if "half_billion" not in request.fixturenames:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """`tiny(cropping, mask, bos_state, size_scale)` → a model directory, made once."""
    root = tmp_path_factory.mktemp("tiny")

    @cache
    def directory(
        cropping: Cropping = "template",
        mask: Mask = "causal",
        bos_state: BosState = "computed",
        size_scale: SizeScale = "linear",
        own_bos: bool = True,
    ) -> Path:
        config = tiny_config(cropping, mask, bos_state, size_scale)
        return write_model(root / f"{cropping}-{mask}-{bos_state}-{size_scale}-{own_bos}", config, 1, own_bos)

    return directory


@pytest.fixture(scope="session")
def half_billion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The full 0.5B shape, 2.5 GB of float32."""
    directory = tmp_path_factory.mktemp("half-billion")
    yield write_model(directory, HALF_BILLION, seed=5)
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def noise() -> PictureFactory:
    """`noise(width, height)` → an RGB picture in which every shift by a pixel shows."""

    def picture(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
        rng = np.random.default_rng((seed, width_px, height_px))
        return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))

    return picture
