"""Workers as Celery's clients are told of them; a real worker is compared with in the integration tests."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from services.tasks.domain import WorkerLoad
from services.tasks.monitoring.celery import DelayedTask, HeldTask, Roster, RosterWorker, stats_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROKER = "nats://user:secret@bus.example:4333,nats://other:4222"


def worker(name: str = "pod/0", session: UUID | None = None, load: WorkerLoad | None = None) -> RosterWorker:
    return RosterWorker(session or uuid4(), name, ["inference"], 2, NOW - timedelta(hours=1), 17, load)


def held(session: UUID, *, running: bool, attempt: int = 1) -> HeldTask:
    return HeldTask(session, uuid4(), "GENERATION", "inference", 3, attempt, NOW - timedelta(seconds=5), running)


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
