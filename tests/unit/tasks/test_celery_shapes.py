"""What is told of workers has the shapes that a real Celery worker's `inspect` answers."""

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from services.tasks.domain import WorkerLoad
from services.tasks.monitoring.celery import DelayedTask, HeldTask, Roster, RosterWorker, stats_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROKER = "nats://user:secret@bus.example:4333,nats://other:4222"


def worker(name: str = "pod/0", session: UUID | None = None, load: WorkerLoad | None = None) -> RosterWorker:
    return RosterWorker(session or uuid4(), name, ["inference"], 2, NOW - timedelta(hours=1), 17, load)


def held(session: UUID, *, running: bool, attempt: int = 1) -> HeldTask:
    return HeldTask(session, uuid4(), "GENERATION", "inference", 3, attempt, NOW - timedelta(seconds=5), running)


def shape(value: Any) -> Any:
    """Members and kinds of a value: one entry of a list stands for all."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [shape(one) for one in value[:1]]
    return type(value).__name__ if value is not None else "null"


@pytest.fixture(scope="module")
def inspected() -> Iterator[dict[str, Any]]:
    """What a Celery worker answers while it runs one task, holds another and waits with a third."""
    app = Celery("peer", broker="memory://", backend="cache+memory://")
    app.conf.worker_prefetch_multiplier = 4
    running, ending = threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        ending.wait(30)

    task = app.task(work, name="peer.work")
    with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=30) as started:
        try:
            task.delay()
            assert running.wait(30)
            task.delay()
            task.apply_async(countdown=600)
            control = app.control.inspect(timeout=2)
            answers: dict[str, Any] = {}
            for _ in range(50):
                answers = {
                    name: getattr(control, name)() for name in ("active", "scheduled", "reserved", "revoked", "stats")
                }
                if all(answers.values()) and all(answers[name][started.hostname] for name in ("active", "scheduled")):
                    break
            yield {name: answer[started.hostname] for name, answer in answers.items()}
        finally:
            ending.set()


def test_entries_have_the_members_and_kinds_of_celery(inspected: dict[str, Any]) -> None:
    one = worker(load=WorkerLoad(pid=41, child_pids=[42]))
    roster = Roster(
        NOW,
        [one],
        [held(one.session, running=True), held(one.session, running=False)],
        [DelayedTask(uuid4(), "REFINE", "inference", 0, 2, "pod/0", NOW)],
    )
    stats = stats_of(roster, BROKER)
    [active] = stats.active["celery@pod/0"]
    assert shape(active) == shape(inspected["active"][0])
    [scheduled] = stats.scheduled["celery@pod/0"]
    theirs = inspected["scheduled"][0]
    assert set(scheduled) == set(theirs)
    assert set(scheduled["request"]) == set(theirs["request"])
    [reserved] = stats.reserved["celery@pod/0"]
    assert (reserved["time_start"], reserved["worker_pid"], reserved["acknowledged"]) == (None, None, False)
    assert set(reserved) == set(active)


def test_statistics_have_the_members_of_celery(inspected: dict[str, Any]) -> None:
    one = worker(load=WorkerLoad(pid=os.getpid(), completed={"GENERATION": 3}, started=NOW.timestamp() - 90))
    ours, theirs = stats_of(Roster(NOW, [one]), BROKER).stats["celery@pod/0"], inspected["stats"]
    assert set(ours) == set(theirs)
    for part in ("broker", "rusage"):
        assert set(ours[part]) == set(theirs[part]), part
    # The pool of threads tells less than that of processes, whose members are documented.
    assert set(ours["pool"]) >= set(theirs["pool"]) - {"threads"}
    assert isinstance(ours["clock"], str)
    assert isinstance(theirs["clock"], str)
    assert (ours["uptime"], ours["total"], ours["pool"]["max-concurrency"]) == (90, {"atelier.generation": 3}, 2)


def test_no_credential_of_the_bus_is_shown() -> None:
    shown = stats_of(Roster(NOW, [worker()]), BROKER).stats["celery@pod/0"]["broker"]
    assert (shown["hostname"], shown["port"], shown["userid"]) == ("bus.example", 4333, None)
    assert "secret" not in str(shown)


def test_every_worker_is_in_all_six_maps() -> None:
    first, second = worker("a"), worker("b")
    cancelled = uuid4()
    stats = stats_of(Roster(NOW, [first, second], [held(first.session, running=True)], [], [cancelled]), BROKER)
    for by_worker in stats:
        assert set(by_worker) == {"celery@a", "celery@b"}
    assert stats.query_task == {"celery@a": {}, "celery@b": {}}
    assert stats.revoked == {"celery@a": [str(cancelled)], "celery@b": [str(cancelled)]}
    assert not stats.active["celery@b"]


def test_a_delayed_task_waits_at_the_worker_that_had_it_or_at_one_of_its_queue() -> None:
    first, second = worker("a"), worker("b")
    again = DelayedTask(uuid4(), "NOOP", "inference", 0, 2, "b", NOW)
    orphan = DelayedTask(uuid4(), "NOOP", "inference", 0, 2, "gone", NOW)
    elsewhere = DelayedTask(uuid4(), "NOOP", "training", 0, 2, "b", NOW)
    stats = stats_of(Roster(NOW, [first, second], [], [again, orphan, elsewhere]), BROKER)
    assert [one["request"]["id"] for one in stats.scheduled["celery@b"]] == [str(again.id)]
    assert [one["request"]["id"] for one in stats.scheduled["celery@a"]] == [str(orphan.id)]
    assert stats.scheduled["celery@b"][0]["eta"] == NOW.isoformat()
    assert stats.scheduled["celery@b"][0]["request"]["delivery_info"]["redelivered"] is True
