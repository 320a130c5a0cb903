"""What the daemon makes of its configuration."""

from __future__ import annotations

from edge_daemon.config import OutboxConfig
from edge_daemon.daemon import limits_of
from edge_daemon.outbox import Limits


def test_the_outbox_is_bounded_in_the_units_of_the_file() -> None:
    assert limits_of(OutboxConfig(max_mib=3, max_age_days=0.5)) == Limits(3 << 20, 43_200.0)
