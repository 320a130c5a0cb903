"""Which moondream: by the memory there is and what is installed, and always with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon import memory, variant
from edge_daemon.choices import WantedVariant
from edge_daemon.errors import ConfigError
from edge_daemon.memory import USEFUL_POSITIONS, Budget, Needs
from edge_daemon.models.catalogue import CATALOGUE
from edge_daemon.needs import RUNTIME_BYTES
from edge_daemon.units import MIB
from edge_daemon.variant import Variant, choose

SMALL = Needs(RUNTIME_BYTES, 700 * MIB, 1711 * MIB, 184 * MIB, 90 * MIB, 196_608, 730, 2048)
LARGE = Needs(RUNTIME_BYTES, 1700 * MIB, 5665 * MIB, 900 * MIB, 90 * MIB, 393_216, 730, 2048)
BOTH = {"moondream-0.5b": SMALL, "moondream-2b": LARGE}


def budget(mib: float) -> Budget:
    return Budget(int(mib * MIB), "the board's free memory, less a reserve")


def test_the_2b_where_the_memory_holds_it() -> None:
    assert choose("auto", BOTH, budget(9000)) == Variant(
        "moondream-2b",
        "moondream-2b needs 8935 MiB; the budget is 9000 MiB (the board's free memory, less a reserve)",
    )


def test_else_the_half_billion() -> None:
    assert choose("auto", BOTH, budget(3600)) == Variant(
        "moondream-0.5b",
        "moondream-2b needs 8935 MiB; moondream-0.5b needs 3080 MiB; "
        "the budget is 3600 MiB (the board's free memory, less a reserve)",
    )


def test_the_limit_is_met_exactly() -> None:
    needed_bytes = LARGE.at(730 + USEFUL_POSITIONS)
    assert choose("auto", BOTH, Budget(needed_bytes, "test")).name == "moondream-2b"
    assert choose("auto", BOTH, Budget(needed_bytes - 1, "test")).name == "moondream-0.5b"


@given(st.integers(0, 20_000))
def test_what_is_chosen_holds_a_useful_cache_or_is_the_smallest(mib: int) -> None:
    limit = budget(mib)
    chosen = choose("auto", BOTH, limit).name
    if chosen == "moondream-2b":
        assert memory.kv_positions(limit, LARGE) >= LARGE.prefix_positions + USEFUL_POSITIONS
    else:
        assert LARGE.at(730 + USEFUL_POSITIONS) > limit.limit_bytes


@pytest.mark.parametrize("mib", [500, 4000, 64_000])
def test_only_what_is_installed_is_chosen(mib: int) -> None:
    small, large = ({name: BOTH[name]} for name in ("moondream-0.5b", "moondream-2b"))
    chosen = choose("auto", small, budget(mib))
    assert chosen.name == "moondream-0.5b"
    assert chosen.reason.endswith("moondream-2b is not installed")
    chosen = choose("auto", large, budget(mib))
    assert chosen.name == "moondream-2b"
    assert chosen.reason.endswith("moondream-0.5b is not installed")


def test_where_there_is_none_it_is_told_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match=r"no variant .* installed: edge-daemon model pull moondream-0\.5b"):
        choose("auto", {}, budget(9000))


@pytest.mark.parametrize(("wanted", "name"), [("2b", "moondream-2b"), ("0.5b", "moondream-0.5b")])
def test_a_configured_variant_is_taken_whatever_the_memory(wanted: WantedVariant, name: str) -> None:
    assert choose(wanted, BOTH, budget(1)) == Variant(name, f"variant {wanted} is configured")
    with pytest.raises(ConfigError, match=f"variant {wanted} is not installed: edge-daemon model pull {name}"):
        choose(wanted, {}, budget(9000))


def test_the_names_are_those_of_the_catalogue() -> None:
    assert set(variant.STORED.values()) <= {artefact.name for artefact in CATALOGUE}
