"""What can be fetched: the published artefacts, each pinned to a commit, and what they need of a board.

Facts only: nothing here reaches for the network or the disk. Sizes and hashes of the files are those that the
hub gives for the pinned commits; what is not known is None, and then nothing is claimed about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_daemon.errors import ConfigError
from edge_daemon.moondream.config import ModelConfig, RegionConfig, Templates, TextConfig, Tokens, VisionConfig
from edge_daemon.moondream.footprint import BOS_KV, tensors_of

FLOAT32_BYTES = 4
TOKENIZER_BYTES = 8 << 20
"""A generous tokenizer.json (the published ones have 2 and 4 MB) and config.json."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository on the hub."""

    repository: str
    commit: str
    path: str
    size_bytes: int | None
    sha256: str | None
    """Of the file as it is served."""


@dataclass(frozen=True)
class Artefact:
    """One model that can be fetched."""

    name: str
    summary: str
    files: tuple[RemoteFile, ...]
    licence: str
    shape: ModelConfig
    """Sizes only: the templates and conventions come from the files themselves."""
    unpacked_bytes: int | None = None
    """Of a compressed moonfile."""
    unpacked_sha256: str | None = None
    stored_bytes_per_weight: int = FLOAT32_BYTES
    """Bytes of one weight in the model directory that the import makes."""

    @property
    def download_bytes(self) -> int | None:
        """Bytes to fetch, or None when a size is not known."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return weights_of(self.shape)

    @property
    def installed_bytes(self) -> int:
        """Bytes of the model directory."""
        return self.weights * self.stored_bytes_per_weight + TOKENIZER_BYTES

    @property
    def importing_bytes(self) -> int:
        """Bytes of disk that the import needs: the new directory, and a moonfile's graphs twice for the proof."""
        return self.installed_bytes + 2 * (self.unpacked_bytes or 0)


def weights_of(shape: ModelConfig) -> int:
    """Number of weights of a checkpoint of this shape; a stored BOS is none of them."""
    return sum(tensor.values for name, tensor in tensors_of(shape).items() if name != BOS_KV)


HALF_BILLION = ModelConfig(
    name="moondream-0.5b",
    vision=VisionConfig(dim=720, ff_dim=2690, layers=27, heads=10, patch_px=14, crop_px=378, projection_dim=8192),
    text=TextConfig(dim=1024, ff_dim=4096, layers=24, heads=16, vocab=51200, max_context=2048, rotary_dim=32),
    region=RegionConfig(
        coord_features=256, coord_bins=1024, size_features=512, size_bins=1024, inner_dim=8192, size_scale="linear"
    ),
    cropping="template",
    mask="causal",
    bos_state="stored",
    tokens=Tokens(bos=50256, eos=50256),
    templates=Templates(caption={}),
)
"""Upstream's config_md05.json and the interfaces of the moonfile."""

TWO_BILLION = replace(
    HALF_BILLION,
    name="moondream-2b",
    vision=VisionConfig(dim=1152, ff_dim=4304, layers=27, heads=16, patch_px=14, crop_px=378, projection_dim=8192),
    text=TextConfig(dim=2048, ff_dim=8192, layers=24, heads=32, vocab=51200, max_context=2048, rotary_dim=32),
    cropping="overlap",
    mask="prefix",
    bos_state="computed",
    tokens=Tokens(bos=0, eos=0, answer=3),
)
"""Upstream's config_md2.json and torch/config.py of June 2025."""

MOONFILES = ("vikhyatk/moondream2", "9dddae84d54db4ac56fe37817aeaeb502ed083e2")
"""Repository and commit (its branch `onnx`) of the official moonfiles."""

CATALOGUE = (
    Artefact(
        name="moondream-0.5b",
        summary="Moondream 0.5B, the official int8 file",
        files=(RemoteFile(*MOONFILES, "moondream-0_5b-int8.mf.gz", 621_619_051, None),),
        licence="Apache-2.0",
        shape=HALF_BILLION,
        unpacked_bytes=692_802_047,
        unpacked_sha256="53793b60e3a0fe091bcd3e9e1853908a150367ed2d8d45e083eb79a5fbddbcdb",
    ),
    Artefact(
        name="moondream-0.5b-int4",
        summary="Moondream 0.5B, the official int4 file: a smaller download, coarser weights; its hash is not known",
        files=(RemoteFile(*MOONFILES, "moondream-0_5b-int4.mf.gz", 442_376_060, None),),
        licence="Apache-2.0",
        shape=replace(HALF_BILLION, name="moondream-0.5b-int4"),
        unpacked_bytes=477 << 20,
    ),
    Artefact(
        name="moondream-2b",
        summary="Moondream 2B of 2025-06-21, bfloat16 weights",
        files=(
            RemoteFile(
                repository="vikhyatk/moondream2",
                commit="9a7d4024050840e001defacec2b00727e89149e6",  # tag 2025-06-21
                path="model.safetensors",
                size_bytes=3_854_538_968,
                sha256="70a7d94c0c8349eb58ed2d9e636ef2d0916960f321ecabeac6354b8ba3d7403f",
            ),
            RemoteFile(  # the repository's own tokenizer.json is an older one that does not fit these weights
                repository="moondream/starmie-v1",
                commit="35192e10a54e36eabe0a7cc57a2c1aab371cafc5",
                path="tokenizer.json",
                size_bytes=3_694_206,
                sha256="0512fdcac4a5f9e7746cbefce4a468dc93bf0f93f11e701b84f8b31bff199e9c",
            ),
        ),
        licence="Apache-2.0",
        shape=TWO_BILLION,
        stored_bytes_per_weight=2,
    ),
)
"""Everything that `model pull` knows."""


def artefact(name: str, catalogue: tuple[Artefact, ...] = CATALOGUE) -> Artefact:
    """The artefact of a name. Raises ConfigError that lists the names."""
    for known in catalogue:
        if known.name == name:
            return known
    raise ConfigError(f"nothing named {name!r} can be fetched; there are: {', '.join(a.name for a in catalogue)}")
