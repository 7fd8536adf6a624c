import itertools
from datetime import UTC, datetime, timedelta

import pytest

from services.tasks.domain import (
    MAX_ERROR_LENGTH,
    TERMINAL,
    TRANSITIONS,
    JobKind,
    RetryPolicy,
    SessionRecord,
    TaskStatus,
    clip_error,
    lane_of,
    may,
)
from services.tasks.identifiers import time_ordered_id

LEGAL = {
    (TaskStatus.PENDING, TaskStatus.EXECUTING),
    (TaskStatus.PENDING, TaskStatus.CANCELLED),
    (TaskStatus.PENDING, TaskStatus.FAILED),
    (TaskStatus.EXECUTING, TaskStatus.PENDING),
    (TaskStatus.EXECUTING, TaskStatus.COMPLETED),
    (TaskStatus.EXECUTING, TaskStatus.FAILED),
    (TaskStatus.EXECUTING, TaskStatus.CANCELLED),
}


@pytest.mark.parametrize(("current", "following"), list(itertools.product(TaskStatus, TaskStatus)))
def test_transition_is_legal_exactly_where_the_table_says(current: TaskStatus, following: TaskStatus) -> None:
    assert may(current, following) == ((current, following) in LEGAL)


def test_every_state_stands_in_the_table_and_terminal_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(TaskStatus)
    assert {status for status, following in TRANSITIONS.items() if not following} == TERMINAL


def test_retries_end_and_their_waits_double_to_a_limit() -> None:
    policy = RetryPolicy(max_retries=3, base_seconds=1, max_seconds=3)
    assert [policy.allows(count) for count in range(5)] == [True, True, True, False, False]
    assert [policy.delay(count).total_seconds() for count in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert not RetryPolicy(max_retries=0).allows(0)


def test_identifiers_are_version_seven_and_ordered_by_time() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    idents = [time_ordered_id(now + timedelta(milliseconds=n)) for n in range(50)]
    assert idents == sorted(idents)
    assert {ident.version for ident in idents} == {7}
    assert {ident.variant for ident in idents} == {"specified in RFC 4122"}


def test_long_error_is_clipped() -> None:
    assert len(clip_error("x" * 100_000)) == MAX_ERROR_LENGTH
    assert clip_error("short") == "short"


def test_session_serves_the_pairs_that_it_names_and_no_combination_of_them() -> None:
    pairs = (lane_of("A", "LOCAL"), lane_of("B", "FAL_STANDARD"), lane_of("", "LOCAL", JobKind.TRAINING))
    session = SessionRecord(time_ordered_id(datetime.now(UTC)), "s", "n", "local", ("inference",), 1, pairs)
    assert session.lanes == {"A/LOCAL", "B/FAL_STANDARD", "TRAINING/LOCAL"}
