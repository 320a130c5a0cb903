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


def test_a_problem_is_told_once_until_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    health: list[str] = []
    complaints = Complaints(lambda: health.append(complaints.problem))
    told = [complaints.say(why) for why in ("it is away", "it is away", "it is full", "it is away")]
    assert told == [True, False, True, False]
    complaints.well()
    assert complaints.say("it is away")
    assert health == ["it is away", "it is full", "it is away", "", "it is away"]
    assert [record.message.partition(";")[0] for record in caplog.records] == ["it is away", "it is full", "it is away"]


def test_what_is_denied_is_counted_by_topic_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(lambda: None)
    for topic in "aab":
        complaints.deny("hub:1883", topic, "(Not authorized)")
    assert complaints.problem == "the broker hub:1883 does not accept messages for b and 1 more (Not authorized)"
    assert len(caplog.records) == 1
