"""Counters equal the truth after tasks that completed, failed, were retried, cancelled, and lost their workers."""

import asyncio
import importlib
import random
from collections import Counter

import pytest
from atelier.tasks.v1 import monitoring_service_pb2 as pb
from atelier.tasks.v1 import tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.monitoring_service_pb2_grpc import TaskMonitoringServiceStub

from services.tasks.postgres.monitoring import PostgresMonitoring
from tests.integration.tasks.conftest import Mesh, Worker, noop

_AT_ONCE = 100


class Churn:
    """Workers that do to each lease one of everything that can happen, drawn by a seed; it remembers what they did."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._mesh = mesh
        self._random = random.Random(seed)
        self._monitoring = PostgresMonitoring(mesh.running.database)
        self._callers = mesh.tasks()
        self.ended: dict[str, str] = {}
        self.happened = Counter[str]()

    async def run(self) -> None:
        """Serve until no task waits or runs."""
        number = 0
        worker = await self._mesh.worker(name="churn/0")
        while True:
            await self._mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
            await self._mesh.running.maintenance.promote()
            leases = await worker.lease(_AT_ONCE, wait=0.3)
            if not leases:
                [(left,)] = await self._mesh.rows("SELECT count(*) FROM tasks WHERE status IN ('PENDING', 'EXECUTING')")
                if not left:
                    return
                continue
            lost = [lease for lease, held in zip(leases, await self._serve(worker, leases), strict=True) if held]
            if self._random.random() < 0.3:  # notes are added up at any moment
                await self._monitoring.fold()
            if lost:
                number += 1
                worker = await self._lose(worker, lost, number)

    async def _serve(self, worker: Worker, leases: list[worker_service_pb2.Lease]) -> list[bool]:
        """Whether each lease is still held after what happened to it."""
        drawn = [self._random.random() for _ in leases]
        return list(await asyncio.gather(*(self._end(worker, *each) for each in zip(leases, drawn, strict=True))))

    async def _end(self, worker: Worker, lease: worker_service_pb2.Lease, drawn: float) -> bool:
        if drawn < 0.55:
            await worker.complete(lease)
            self._note(lease, "COMPLETED")
        elif drawn < 0.72:
            requeued = await worker.fail(lease)
            self._note(lease, "retried" if requeued else "FAILED")
        elif drawn < 0.8:
            await worker.fail(lease, retryable=False)
            self._note(lease, "FAILED")
        elif drawn < 0.9:
            await self._callers.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=lease.job_id))
            self._note(lease, "CANCELLED")
        else:
            self.happened["lost"] += 1
            return True
        return False

    async def _lose(self, worker: Worker, lost: list[worker_service_pb2.Lease], number: int) -> Worker:
        """Let a worker die with what it holds; another one comes."""
        await worker.heartbeat(*lost)
        await self._mesh.execute("UPDATE sessions SET expires_at = now() - interval '1 second' WHERE closed_at IS NULL")
        await self._mesh.running.maintenance.expire()
        states = await self._mesh.rows(
            "SELECT id::text FROM tasks WHERE id = ANY(%s::uuid[]) AND status = 'FAILED'",
            [lease.job_id for lease in lost],
        )
        self.ended.update({row[0]: "FAILED" for row in states})
        return await self._mesh.worker(name=f"churn/{number}")

    def _note(self, lease: worker_service_pb2.Lease, what: str) -> None:
        self.happened[what] += 1
        if what != "retried":
            assert lease.job_id not in self.ended, "a terminal state never changes"
            self.ended[lease.job_id] = what


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.timeout(600)
async def test_counts_equal_the_truth_after_failures_cancels_and_lost_leases(mesh: Mesh, count: int) -> None:
    stub = mesh.tasks()
    made: set[str] = set()
    for first in range(0, count, _AT_ONCE):
        tasks = (mesh.create(noop(origin_zone=f"z{first % 3}"), stub=stub) for _ in range(_AT_ONCE))
        made |= {task.id for task in await asyncio.gather(*tasks)}
    for task_id in sorted(made)[: count // 50]:  # some never run
        await stub.CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task_id))
    churn = Churn(mesh, count)
    await churn.run()
    assert min(churn.happened[what] for what in ("COMPLETED", "FAILED", "CANCELLED", "retried", "lost")) > 0

    truth = Counter(churn.ended.values())
    truth["CANCELLED"] += count // 50
    assert truth.total() == count
    monitor = mesh.channel(mesh.token()).stub(TaskMonitoringServiceStub)
    for _ in range(2):  # the same before and after the last notes are added up
        stats = await monitor.GetTaskStats(pb.GetTaskStatsRequest())
        assert dict(stats.by_status) == {"PENDING": 0, "EXECUTING": 0, **truth}
        assert (stats.total_tasks, stats.tasks_last_hour, stats.tasks_last_24h) == (count, count, count)
        assert dict(stats.by_task_type) == {"NOOP": count}
        zones = [
            (await monitor.GetTaskStats(pb.GetTaskStatsRequest(origin_zone=zone))).total_tasks
            for zone in ("z0", "z1", "z2")
        ]
        assert sum(zones) == count
        await PostgresMonitoring(mesh.running.database).fold()
    queues = await monitor.GetQueueStats(pb.GetQueueStatsRequest())
    assert (queues.total_pending, queues.total_active) == (0, 0)
    assert sum(one.tasks_completed_last_hour for one in queues.queues) == truth["COMPLETED"]


async def test_notes_of_the_version_before_count_after_the_migration_and_those_of_this_one_after_its_reverse(
    mesh: Mesh,
) -> None:
    revision = importlib.import_module("services.tasks.migrations.versions.0022_task_changes")
    monitoring = PostgresMonitoring(mesh.running.database)
    worker = await mesh.worker(name="before")

    async def two_of_three_complete() -> None:
        for _ in range(3):
            await mesh.create(noop())
        for lease in await worker.lease(2):
            await worker.complete(lease)

    async def counted() -> tuple[dict[str, int], int, int]:
        figures, _ = await monitoring.queues(["inference"], None)
        counts = await monitoring.counts(None, None, None)
        return {name: count for name, count in counts.by_status.items() if count}, counts.last_day, figures[0].completed

    await two_of_three_complete()
    for statement in revision.REVERSE:
        await mesh.execute(statement)
    await two_of_three_complete()
    for statement in revision.STATEMENTS:
        await mesh.execute(statement)
    assert await counted() == ({"COMPLETED": 4, "PENDING": 2}, 6, 4)
    await two_of_three_complete()
    await monitoring.fold()
    assert await counted() == ({"COMPLETED": 6, "PENDING": 3}, 9, 6)
    assert await mesh.rows("SELECT 1 FROM task_changes") == []
