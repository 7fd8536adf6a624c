"""The breaker of an evaluator, and what is told of its health."""

from services.inference.evaluation.record import EvaluatorRecord


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(record: EvaluatorRecord, times: int = 1, *, counts: bool = True, fatal: bool = False) -> None:
    for _ in range(times):
        assert record.admit()
        record.failed(1.0, counts=counts, fatal=fatal)


def test_before_the_first_evaluation_all_is_well() -> None:
    health = EvaluatorRecord(Clock()).health()
    assert (health.healthy, health.score, health.total, health.success_rate) == (True, 1.0, 0, 1.0)
    assert (health.average_seconds, health.breaker) == (0.0, "closed")


def test_evaluations_are_counted() -> None:
    record = EvaluatorRecord(Clock())
    for seconds in (1.0, 2.0, 3.0):
        assert record.admit()
        record.succeeded(seconds)
    fail(record)
    health = record.health()
    assert (health.total, health.success_rate, health.score, health.average_seconds) == (4, 0.75, 0.75, 1.75)


def test_failures_in_a_row_open_the_breaker_and_successes_close_it() -> None:
    clock = Clock()
    record = EvaluatorRecord(clock)
    fail(record, 4)
    assert record.health().breaker == "closed"
    fail(record)
    health = record.health()
    assert (health.breaker, health.healthy, health.score) == ("open", False, 0.0)
    assert not record.admit()
    clock.now += 30
    assert record.health().breaker == "half_open"
    assert [record.admit() for _ in range(4)] == [True, True, True, False]
    record.succeeded(1.0)
    assert record.health().breaker == "half_open"
    record.succeeded(1.0)
    assert record.health().breaker == "closed"
    assert record.health().success_rate == 2 / 7


def test_a_trial_that_fails_opens_it_again() -> None:
    clock = Clock()
    record = EvaluatorRecord(clock)
    fail(record, 5)
    clock.now += 31
    fail(record)
    assert record.health().breaker == "open"
    assert not record.admit()
    clock.now += 30
    assert record.admit()


def test_a_success_between_failures_begins_the_count_anew() -> None:
    record = EvaluatorRecord(Clock())
    fail(record, 4)
    assert record.admit()
    record.succeeded(1.0)
    fail(record, 4)
    assert record.health().breaker == "closed"


def test_what_would_fail_alike_opens_it_at_once() -> None:
    record = EvaluatorRecord(Clock())
    fail(record, fatal=True)
    assert record.health().breaker == "open"


def test_what_tells_nothing_of_the_evaluator_leaves_it_closed_and_gives_trials_back() -> None:
    clock = Clock()
    record = EvaluatorRecord(clock)
    fail(record, 9, counts=False)
    assert record.health().breaker == "closed"
    fail(record, 5)
    clock.now += 30
    fail(record, 9, counts=False)
    assert record.health().breaker == "half_open"


def test_the_score_is_about_the_last_fifty() -> None:
    record = EvaluatorRecord(Clock())
    fail(record, 3)
    for _ in range(50):
        record.admit()
        record.succeeded(1.0)
    health = record.health()
    assert health.score == 1.0
    assert health.success_rate == 50 / 53
