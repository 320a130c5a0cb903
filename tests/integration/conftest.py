"""What several tests here share: who listens at the broker, and an outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.outbox import Outbox
from tests.integration.listening import Listener
from tests.integration.service import Subscriber, subscribed


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    made = Listener(broker.port)
    yield made
    made.stop()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    with subscribed(broker.port) as heard:
        yield heard
