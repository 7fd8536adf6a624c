"""What is told of workers has the shapes that real Celery workers' `inspect` answers, of processes and of threads."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.tasks.domain import WorkerLoad
from services.tasks.monitoring.celery import CeleryStats, DelayedTask, HeldTask, Roster, RosterWorker, stats_of

pytestmark = pytest.mark.timeout(300)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = "celery@pod/0"
_PEER = Path(__file__).parent / "celery_peer.py"


def inspected(pool: str, folder: Path) -> dict[str, Any]:
    """What a Celery worker answers while it runs one task, waits with another and, of threads, holds a third."""
    # Celery makes the worker's processes by a fork of one that has threads.
    command = (sys.executable, "-W", "ignore", str(_PEER), pool, str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inspected("prefork", tmp_path_factory.mktemp("prefork"))


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inspected("threads", tmp_path_factory.mktemp("threads"))


@pytest.fixture(scope="module")
def ours() -> CeleryStats:
    """The same of a worker of this mesh: one task runs, one is held, and one waits."""
    load = WorkerLoad(pid=os.getpid(), child_pids=[42], completed={"NOOP": 3}, started=NOW.timestamp() - 90)
    worker = RosterWorker(uuid4(), "pod/0", ["inference"], 1, NOW - timedelta(hours=1), 17, load)
    held = [held_by(worker.session, running=running) for running in (True, False)]
    delayed = [DelayedTask(uuid4(), "REFINE", "inference", 0, 2, "pod/0", NOW)]
    return stats_of(Roster(NOW, [worker], held, delayed), "nats://bus.example:4222")


def held_by(session: UUID, *, running: bool) -> HeldTask:
    return HeldTask(session, uuid4(), "GENERATION", "inference", 3, 1, NOW - timedelta(seconds=5), running)


# A pool of processes is what Celery has by default.
POOLS = ("processes", pytest.param("threads", marks=pytest.mark.long))


def shape(value: Any) -> Any:
    """Members and kinds of a value: one entry of a list stands for all."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [shape(one) for one in value[:1]]
    return type(value).__name__ if value is not None else "null"


@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_has_the_shape_of_celery(request: pytest.FixtureRequest, pool: str, ours: CeleryStats) -> None:
    theirs = request.getfixturevalue(pool)["active"]
    assert shape(ours.active[NAME]) == shape(theirs)


@pytest.mark.parametrize("pool", POOLS)
def test_what_waits_for_a_time_has_the_shape_of_celery(
    request: pytest.FixtureRequest, pool: str, ours: CeleryStats
) -> None:
    [mine], [theirs] = ours.scheduled[NAME], request.getfixturevalue(pool)["scheduled"]
    assert shape(mine) == shape(theirs)
    assert datetime.fromisoformat(mine["eta"]).utcoffset() == datetime.fromisoformat(theirs["eta"]).utcoffset()


def test_what_is_held_has_the_shape_of_celery(threads: dict[str, Any], ours: CeleryStats) -> None:
    [mine], [theirs] = ours.reserved[NAME], threads["reserved"]
    assert shape(mine) == shape(theirs)
    assert (mine["time_start"], mine["worker_pid"]) == (theirs["time_start"], theirs["worker_pid"]) == (None, None)


def test_what_was_cancelled_is_a_list_as_of_celery(processes: dict[str, Any], ours: CeleryStats) -> None:
    assert ours.revoked[NAME] == processes["revoked"] == []


def test_statistics_have_the_members_and_kinds_of_celery(processes: dict[str, Any], ours: CeleryStats) -> None:
    mine, theirs = ours.stats[NAME], processes["stats"]
    assert set(mine) == set(theirs)
    own = {"total", "pool", "broker", "rusage"}
    assert shape({name: one for name, one in mine.items() if name not in own}) == shape(
        {name: one for name, one in theirs.items() if name not in own}
    )
    assert (list(mine["total"].values()), list(theirs["total"].values())) == ([3], [1])
    for part in ("broker", "rusage"):
        assert set(mine[part]) == set(theirs[part]), part
    # What a pool of processes has written to them it tells of brokers that wake it alone: this one's is polled.
    pool = {name: one for name, one in mine["pool"].items() if name != "writes"}
    assert theirs["pool"].pop("writes") == "N/A"
    assert shape(pool) == shape(theirs["pool"])
    assert (pool["processes"], pool["max-concurrency"], mine["uptime"]) == ([42], 1, 90)
