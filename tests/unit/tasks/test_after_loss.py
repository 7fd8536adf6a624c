"""What follows an attempt that ended without a result, as one table over all cases."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from services.tasks.domain import (
    HANDED_BACK,
    MAX_FREE_RELEASES,
    AttemptLoss,
    AttemptOutcome,
    ErrorCategory,
    Fail,
    Requeue,
    RetryPolicy,
    TaskRecord,
    after_loss,
    new_task,
    time_ordered_id,
)

POLICY = RetryPolicy(max_retries=3, base_seconds=1.0, max_seconds=30.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

OUTCOMES = (AttemptOutcome.FAILED, AttemptOutcome.EXPIRED, AttemptOutcome.RELEASED)
RETRIES = {"first": 0, "last": 2, "none": 3}  # retries spent, by what is left
RELEASES = {"left": MAX_FREE_RELEASES - 1, "none": MAX_FREE_RELEASES}
BOTH = (True, False)

FREE = ("requeue", 0.0, True)
FAILS = ("fail",)


def requeued(delay: float) -> tuple[object, ...]:
    return ("requeue", delay, False)


# (outcome, retryable, retries left, releases left, immediate), None for any: what follows, and the recorded outcome.
TABLE: list[tuple[tuple[object, ...], tuple[object, ...], AttemptOutcome]] = [
    (("RELEASED", None, None, "left", None), FREE, AttemptOutcome.RELEASED),
    # Handed back too often: counts as lost, may be retried at once.
    (("RELEASED", None, "first", "none", None), requeued(0.0), AttemptOutcome.EXPIRED),
    (("RELEASED", None, "last", "none", None), requeued(0.0), AttemptOutcome.EXPIRED),
    (("RELEASED", None, "none", "none", None), FAILS, AttemptOutcome.EXPIRED),
]
for _outcome in (AttemptOutcome.FAILED, AttemptOutcome.EXPIRED):
    TABLE += [
        ((_outcome, False, None, None, None), FAILS, _outcome),
        ((_outcome, True, "none", None, None), FAILS, _outcome),
        ((_outcome, True, "first", None, True), requeued(0.0), _outcome),
        ((_outcome, True, "last", None, True), requeued(0.0), _outcome),
        ((_outcome, True, "first", None, False), requeued(1.0), _outcome),
        ((_outcome, True, "last", None, False), requeued(4.0), _outcome),
    ]
CASES = list(itertools.product(OUTCOMES, BOTH, RETRIES, RELEASES, BOTH))


def task(*, retries: int = 0, releases: int = 0) -> TaskRecord:
    record = new_task(
        task_id=time_ordered_id(NOW),
        tenant="acme",
        task_type="NOOP",
        priority=0,
        queue_name="inference",
        provider_type="LOCAL",
        now=NOW,
        origin_instance="here",
        origin_zone=None,
        origin_reference=None,
        workflow_id=None,
        webhook_url=None,
        timeout_seconds=60.0,
        warm_keys=(),
        traceparent="",
        spec=b"",
        body=b"",
    )
    return record._replace(retry_count=retries, released=releases)


def row_of(case: tuple[object, ...]) -> tuple[tuple[object, ...], AttemptOutcome]:
    fitting = [
        (follows, recorded)
        for row, follows, recorded in TABLE
        if all(wanted in (None, given) for wanted, given in zip(row, case, strict=True))
    ]
    assert len(fitting) == 1, f"{case} stands in the table {len(fitting)} times"
    return fitting[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_what_follows_a_lost_or_failed_attempt(case: tuple[AttemptOutcome, bool, str, str, bool]) -> None:
    outcome, retryable, retries, releases, immediate = case
    loss = AttemptLoss(outcome, "why", ErrorCategory.PROVIDER, retryable=retryable, immediate=immediate)
    expected, recorded = row_of(case)
    following = after_loss(task(retries=RETRIES[retries], releases=RELEASES[releases]), loss, POLICY)
    if isinstance(following, Fail):
        assert expected == FAILS
    else:
        assert expected == ("requeue", following.delay.total_seconds(), following.free)
    assert following.loss.outcome is recorded
    if recorded is outcome:
        assert following.loss == loss, "the attempt is recorded as it was reported"


@pytest.mark.parametrize("outcome", [AttemptOutcome.FAILED, AttemptOutcome.EXPIRED])
def test_a_task_fails_with_the_category_of_its_last_loss(outcome: AttemptOutcome) -> None:
    for category, expected in ((ErrorCategory.TIMEOUT, ErrorCategory.TIMEOUT), (None, ErrorCategory.INTERNAL)):
        following = after_loss(task(), AttemptLoss(outcome, "why", category, retryable=False), POLICY)
        assert following == Fail(AttemptLoss(outcome, "why", category, retryable=False), expected)


def test_a_task_that_is_handed_back_too_often_says_so_and_is_resumed() -> None:
    following = after_loss(task(releases=MAX_FREE_RELEASES), HANDED_BACK, POLICY)
    assert isinstance(following, Requeue)
    assert (following.loss.message, following.loss.category) == (
        "The task was handed back too often",
        ErrorCategory.RESOURCE,
    )
    assert following.resumed
    last = after_loss(task(releases=MAX_FREE_RELEASES, retries=POLICY.max_retries), HANDED_BACK, POLICY)
    assert isinstance(last, Fail)
    assert last.category is ErrorCategory.RESOURCE


def test_an_attempt_that_never_began_is_not_resumed() -> None:
    assert after_loss(task(), HANDED_BACK, POLICY) == Requeue(HANDED_BACK, timedelta(), free=True, resumed=False)


@pytest.mark.parametrize("resumed", BOTH)
def test_a_retry_takes_over_from_a_lost_attempt_alone(resumed: bool) -> None:
    following = after_loss(task(), AttemptLoss(AttemptOutcome.EXPIRED, "lost", resumed=resumed), POLICY)
    assert isinstance(following, Requeue)
    assert following.resumed is resumed
