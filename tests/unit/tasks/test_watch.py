import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

from atelier.tasks.v1 import enums_pb2, task_pb2

from meshkit.access import Caller
from meshkit.bus import Bus
from services.tasks.api.watch import TaskWatchers
from services.tasks.domain import TaskRecord, TaskStatus, new_task
from services.tasks.store import TaskStore

CreateTask: Any = task_pb2.CreateTask
CALLER = Caller("ann", "acme")


class Rows:
    """The one method of a store that watchers use."""

    def __init__(self, record: TaskRecord) -> None:
        self.record = record
        self.reads = 0

    async def get(self, task_id: UUID) -> TaskRecord | None:
        self.reads += 1
        return self.record if task_id == self.record.id else None


def leased() -> TaskRecord:
    record = new_task(
        task_id=uuid4(),
        tenant="acme",
        task_type="NOOP",
        priority=3,
        queue_name="inference",
        provider_type="LOCAL",
        now=datetime(2026, 1, 2, tzinfo=UTC),
        origin_instance="tests",
        origin_zone=None,
        origin_reference=None,
        workflow_id=None,
        webhook_url=None,
        timeout_seconds=60,
        warm_keys=(),
        traceparent="",
        spec=CreateTask(noop={}).SerializeToString(),
        body=b"",
    )
    return record._replace(status=TaskStatus.EXECUTING, version=2, attempt=1)


async def test_an_end_is_told_as_it_was_committed_without_a_look_at_the_row() -> None:
    record = leased()
    rows = Rows(record)
    watchers = TaskWatchers(cast("TaskStore", rows), Bus(""))
    states = watchers.watch(record.id, CALLER, 0)
    assert (await anext(states)).task.version == 2
    told = asyncio.ensure_future(anext(states))
    await asyncio.sleep(0)
    read = rows.reads
    watchers.changed(record._replace(status=TaskStatus.COMPLETED, version=3))
    final = await told
    assert (final.task.status, final.task.version, final.final) == (enums_pb2.TASK_STATUS_COMPLETED, 3, True)
    assert rows.reads == read
    assert [state async for state in states] == []


async def test_an_attempt_that_goes_back_is_read_from_the_row() -> None:
    record = leased()
    rows = Rows(record)
    watchers = TaskWatchers(cast("TaskStore", rows), Bus(""))
    states = watchers.watch(record.id, CALLER, 0)
    await anext(states)
    told = asyncio.ensure_future(anext(states))
    await asyncio.sleep(0)
    rows.record = record._replace(status=TaskStatus.EXECUTING, version=4, attempt=2)  # leased again already
    watchers.changed(record._replace(status=TaskStatus.PENDING, version=3))
    assert (await told).task.version == 4
    await cast("Any", states).aclose()
