"""Which MQTT is spoken: 5 wherever the broker takes it."""

from __future__ import annotations

import math

from edge_daemon.dialect import V5, V311, Dialect


def test_a_broker_that_says_it_is_older_is_believed_as_long_as_it_is_there() -> None:
    dialect = Dialect("auto")
    assert dialect.version == V5
    assert dialect.refused()
    assert dialect.version == V311
    dialect.lost()
    assert dialect.version == V311
    dialect.away()
    assert dialect.version == V5, "it may come back as a newer one"


def test_a_broker_that_hangs_up_is_asked_again_with_the_next_connection() -> None:
    dialect = Dialect("auto")
    assert dialect.patience_s < math.inf
    assert dialect.unanswered()
    assert (dialect.version, dialect.patience_s) == (V311, math.inf)
    dialect.lost()
    assert dialect.version == V5


def test_who_answers_to_nothing_is_not_tried_at_once_again() -> None:
    dialect = Dialect("auto")
    assert [dialect.unanswered() for _ in range(4)] == [True, False, True, False]


def test_who_wants_one_version_gets_no_other() -> None:
    for wanted, version in (("5", V5), ("3.1.1", V311)):
        dialect = Dialect(wanted)  # type: ignore[arg-type]  # the loop forgets which texts these are
        assert (dialect.refused(), dialect.unanswered(), dialect.version) == (False, False, version)
        assert dialect.patience_s == math.inf
