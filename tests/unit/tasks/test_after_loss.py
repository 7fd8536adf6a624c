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
    FallBack,
    Fallback,
    Requeue,
    RetryPolicy,
    TaskRecord,
    after_loss,
    new_task,
)
from services.tasks.identifiers import time_ordered_id

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


def task(*, retries: int = 0, releases: int = 0, fallback: Fallback | None = None) -> TaskRecord:
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
        fallback=fallback,
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
        assert isinstance(following, Requeue)
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
    assert after_loss(task(), HANDED_BACK, POLICY) == Requeue(HANDED_BACK, timedelta(), 0, free=True, resumed=False)


@pytest.mark.parametrize("resumed", BOTH)
def test_a_retry_takes_over_from_a_lost_attempt_alone(resumed: bool) -> None:
    following = after_loss(task(), AttemptLoss(AttemptOutcome.EXPIRED, "lost", resumed=resumed), POLICY)
    assert isinstance(following, Requeue)
    assert following.resumed is resumed


SENSELESS = (ErrorCategory.VALIDATION, ErrorCategory.CONTENT_POLICY, ErrorCategory.CANCELLED)


@pytest.mark.parametrize("category", ErrorCategory)
@pytest.mark.parametrize("fallback", [None, *Fallback])
@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("retryable", BOTH)
def test_a_fallback_takes_over_once_where_no_retry_is_left_or_can_help(
    category: ErrorCategory, fallback: Fallback | None, retries: int, retryable: bool
) -> None:
    loss = AttemptLoss(AttemptOutcome.FAILED, "why", category, retryable=retryable)
    following = after_loss(task(retries=retries, fallback=fallback), loss, POLICY)
    if retryable and retries == 0 and category not in SENSELESS:
        assert isinstance(following, Requeue)
    elif fallback is Fallback.AVAILABLE and category not in (ErrorCategory.VALIDATION, ErrorCategory.CANCELLED):
        assert following == FallBack(loss)
    else:
        assert following == Fail(loss, category)


@pytest.mark.parametrize(
    ("asked", "fallback", "follows", "delay"),
    [
        (59.0, Fallback.AVAILABLE, Requeue, 60.0),
        (61.0, Fallback.AVAILABLE, FallBack, None),
        (61.0, Fallback.TAKEN, Requeue, 62.0),
        (61.0, None, Requeue, 62.0),
        (1e9, None, Requeue, 3601.0),
        (-5.0, None, Requeue, 1.0),
    ],
)
def test_a_provider_is_left_alone_for_as_long_as_it_asks_and_no_longer_than_the_bound(
    asked: float, fallback: Fallback | None, follows: type, delay: float | None
) -> None:
    loss = AttemptLoss(AttemptOutcome.FAILED, "slow", ErrorCategory.PROVIDER, immediate=False, retry_after=asked)
    following = after_loss(task(fallback=fallback), loss, POLICY)
    assert isinstance(following, follows)
    if isinstance(following, Requeue):
        assert following.delay.total_seconds() == delay


def test_the_jitter_is_full_and_never_shortens_what_is_asked_for() -> None:
    for spread, least in ((0.0, 0.0), (0.5, 2.0), (1.0, 4.0)):
        assert POLICY.delay(3, spread=spread).total_seconds() == least
        assert POLICY.delay(3, spread=spread, retry_after=7.0).total_seconds() == 7.0 + least
    assert POLICY.delay(1, category=ErrorCategory.RATE_LIMIT).total_seconds() == 8.0
    assert POLICY.delay(9, category=ErrorCategory.RATE_LIMIT).total_seconds() == 30.0


LOST = AttemptLoss(AttemptOutcome.EXPIRED, "lost", ErrorCategory.RESOURCE, resumed=True)


def test_an_attempt_that_is_lost_with_an_accepted_request_costs_no_retry_within_bounds() -> None:
    assert after_loss(task(retries=3), LOST, POLICY, accepted=True) == Requeue(
        LOST, timedelta(), 3, free=True, resumed=True
    )
    spent = after_loss(task(releases=MAX_FREE_RELEASES), LOST, POLICY, accepted=True)
    assert spent == Requeue(LOST, timedelta(), 1, free=False, resumed=True)
    over = task(retries=3, releases=MAX_FREE_RELEASES, fallback=Fallback.AVAILABLE)
    assert after_loss(over, LOST, POLICY, accepted=True) == FallBack(LOST)


@pytest.mark.parametrize(
    "loss",
    [
        AttemptLoss(AttemptOutcome.FAILED, "no", ErrorCategory.PROVIDER),
        AttemptLoss(AttemptOutcome.EXPIRED, "stuck", ErrorCategory.TIMEOUT, resumed=True),
    ],
    ids=["failed", "stuck"],
)
def test_a_failed_or_stuck_attempt_costs_a_retry_whatever_was_accepted(loss: AttemptLoss) -> None:
    following = after_loss(task(), loss, POLICY, accepted=True)
    assert isinstance(following, Requeue)
    assert not following.free


@pytest.mark.parametrize(
    ("kind", "progress", "left"), [("TRAINING", 41.0, 1), ("TRAINING", 40.0, None), ("TASK", 41.0, None)]
)
def test_only_what_a_job_lost_since_it_got_further_counts(kind: str, progress: float, left: int | None) -> None:
    spent = task(retries=POLICY.max_retries)._replace(kind=kind, progress=progress, progress_at_retry=40.0)
    following = after_loss(spent, LOST, POLICY)
    if left is None:
        assert isinstance(following, Fail)
    else:
        assert isinstance(following, Requeue)
        assert (following.retries, following.free) == (left, False)
