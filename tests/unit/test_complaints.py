"""What is told of a broker, how often, and until when."""

from __future__ import annotations

import pytest

from edge_daemon.complaints import MOST_TOLD, Complaints
from edge_daemon.topics import Publication


def test_messages_for_any_number_of_topics_do_not_fill_log_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever sends commands says where the answers are to go."""
    complaints = Complaints(lambda: None)
    for number in range(2 * MOST_TOLD):
        complaints.refuse("hub:1883", Publication(f"answers/{number}", b"{}", retain=False), "not allowed")
    assert (len(caplog.records), complaints.refused) == (MOST_TOLD, 2 * MOST_TOLD)
    assert complaints.last_refused == f"2 bytes for answers/{2 * MOST_TOLD - 1}: not allowed"


def test_a_problem_is_over_when_all_is_allowed_that_was_not() -> None:
    complaints = Complaints(lambda: None)
    complaints.deafen("hub:1883", ["a/+", "b/+"], "(Not authorized)")
    complaints.deny("hub:1883", "c", "(Not authorized)")
    assert not complaints.is_last_heard(["a/+"])
    assert not complaints.is_last_allowed("c")
    assert not complaints.is_last_heard(["a/+"])
    assert complaints.is_last_heard(["b/+"])
    assert not complaints.is_last_heard(["b/+"])
