import asyncio
from typing import Any

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2, phase_pb2, tasks_service_pb2, worker_service_pb2

from meshkit.bus import Bus, BusMessage
from meshkit.errors import ErrorKind, MeshError
from services.tasks.api import watch
from tests.conftest import NatsControl
from tests.integration.tasks.conftest import Mesh, StartMesh, ref, until


class Follower:
    """Collects what a watch says."""

    def __init__(self, mesh: Mesh, task_id: str, after: int | None = None) -> None:
        self.seen: list[tasks_service_pb2.WatchTaskResponse] = []
        request = tasks_service_pb2.WatchTaskRequest(task_id=task_id, after_version=after)
        self._stream = mesh.tasks().WatchTask(request)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for response in self._stream:
            self.seen.append(response)

    async def reached(self, status: int) -> bool:
        return any(response.task.status == status for response in self.seen)


@pytest.mark.parametrize("nats", [True, False])
async def test_watch_tells_every_state_until_the_end(start_mesh: StartMesh, nats: bool) -> None:
    mesh = await start_mesh(run_loops=True, **({} if nats else {"nats_url": ""}))
    task = await mesh.create()
    follower = Follower(mesh, task.id)
    await until(lambda: follower.reached(enums_pb2.TASK_STATUS_PENDING))
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await until(lambda: follower.reached(enums_pb2.TASK_STATUS_EXECUTING))
    await worker.complete(lease)
    async with asyncio.timeout(60):
        await follower.task
    assert [response.task.version for response in follower.seen] == [1, 2, 3]
    assert [response.final for response in follower.seen] == [False, False, True]


async def test_watch_brings_progress_and_previews(mesh: Mesh) -> None:
    task = await mesh.create()
    follower = Follower(mesh, task.id)
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await until(lambda: follower.reached(enums_pb2.TASK_STATUS_EXECUTING), seconds=60)
    await worker.report(lease, 50, step=2, preview=b"jpeg")
    await until(lambda: _has_step(follower, 2))
    shown = next(response for response in follower.seen if response.step == 2)
    assert (shown.task.progress, shown.preview, shown.final) == (50, b"jpeg", False)
    await worker.complete(lease)
    async with asyncio.timeout(60):
        await follower.task


@pytest.mark.parametrize("well", [True, False])
async def test_an_end_that_this_process_committed_is_told_without_the_relay(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    for name in ("SEEING_SECONDS", "BLIND_SECONDS"):  # the row is not looked at again
        monkeypatch.setattr(watch, name, 3600.0)
    mesh = await start_mesh(max_retries=0)  # no loop runs, so that no event is published
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    follower = Follower(mesh, task.id)
    await until(lambda: follower.reached(enums_pb2.TASK_STATUS_EXECUTING))
    await (worker.complete(lease) if well else worker.fail(lease, retryable=False))
    async with asyncio.timeout(60):
        await follower.task
    assert follower.seen[-1].final


async def test_each_follower_is_told_a_step_once(mesh: Mesh) -> None:
    task = await mesh.create()
    followers = [Follower(mesh, task.id) for _ in range(3)]
    worker = await mesh.worker()
    [lease] = await worker.lease()
    for follower in followers:
        await until(lambda follower=follower: follower.reached(enums_pb2.TASK_STATUS_EXECUTING), seconds=60)  # type: ignore[misc]  # mypy infers no type for a default of a lambda
    await worker.report(lease, 50, step=2)
    for follower in followers:
        await until(lambda follower=follower: _has_step(follower, 2))  # type: ignore[misc]  # mypy infers no type for a default of a lambda
    await worker.complete(lease)
    async with asyncio.timeout(60):
        await asyncio.gather(*(follower.task for follower in followers))
    assert [[response.step for response in follower.seen].count(2) for follower in followers] == [1, 1, 1]


async def test_progress_reaches_the_row_and_stale_attempts_do_not(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    response = await worker.report(lease, 40)
    assert list(response.give_up) == []

    async def written() -> bool:
        return (await mesh.get(task.id)).progress == 40

    await until(written)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    stale = await worker.report(lease, 90)
    assert [item.job_id for item in stale.give_up] == [task.id]


async def test_watch_resumes_after_the_version_seen(mesh: Mesh) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.complete(lease)
    follower = Follower(mesh, task.id, after=3)
    async with asyncio.timeout(60):
        await follower.task
    assert [(response.task.version, response.final) for response in follower.seen] == [(3, True)]


async def test_watch_of_another_tenants_task_is_not_found(mesh: Mesh) -> None:
    task = await mesh.create(tenant="globex")
    follower = Follower(mesh, task.id)
    with pytest.raises(MeshError) as error:
        await follower.task
    assert error.value.kind is ErrorKind.NOT_FOUND


async def test_watching_holds_no_connection(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(database_max_connections=2)
    task = await mesh.create()
    followers = [Follower(mesh, task.id) for _ in range(20)]
    for follower in followers:
        await until(lambda follower=follower: follower.reached(enums_pb2.TASK_STATUS_PENDING))  # type: ignore[misc]  # mypy infers no type for a default of a lambda
    await mesh.create()
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=task.id))
    async with asyncio.timeout(60):
        await asyncio.gather(*(follower.task for follower in followers))


async def test_events_are_published_once_in_order(start_mesh: StartMesh, nats_url: str) -> None:
    mesh = await start_mesh(run_loops=True)
    bus = Bus(nats_url)
    await bus.connect(60)
    heard: list[BusMessage] = []

    async def hear(message: BusMessage) -> None:
        heard.append(message)

    await bus.subscribe("atelier.tasks.v1.task.*", hear)
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await worker.complete(lease)

    def own() -> list[Any]:
        return [m for m in heard if events_pb2.TaskStatusEvent.FromString(m.data).task_id == task.id]

    async def all_there() -> bool:
        return len(own()) == 3

    await until(all_there)
    assert [message.subject.rpartition(".")[2] for message in own()] == ["created", "started", "completed"]
    first, _, last = own()
    assert first.headers["Atelier-Event-Type"] == "task_created"
    assert first.headers["Atelier-Tenant"] == "acme"
    assert [message.headers["Atelier-Version"] for message in own()] == ["1", "2", "3"]
    assert events_pb2.TaskCreatedEvent.FromString(first.data).task_type == "NOOP"
    status = events_pb2.TaskStatusEvent.FromString(last.data)
    assert (status.status, status.progress) == (enums_pb2.TASK_STATUS_COMPLETED, 100)
    await bus.close()


async def test_nothing_is_lost_when_nats_loses_its_disk(start_mesh: StartMesh, nats_server: NatsControl) -> None:
    mesh = await start_mesh(run_loops=True, nats_url=nats_server.url)
    await mesh.create()
    nats_server.kill()
    nats_server.wipe()
    task = await mesh.create()
    worker = await mesh.worker()
    for lease in await worker.lease(2):
        await worker.complete(lease)
    assert (await mesh.get(task.id)).status == enums_pb2.TASK_STATUS_COMPLETED
    nats_server.start()

    async def published() -> bool:
        [[waiting]] = await mesh.rows("SELECT count(*) FROM outbox")
        return bool(waiting == 0)

    await until(published, seconds=20)


async def _has_step(follower: Follower, step: int) -> bool:
    return any(response.step == step for response in follower.seen)


async def test_a_task_tells_what_it_is_at(mesh: Mesh) -> None:
    first, second = await mesh.create(), await mesh.create()
    await mesh.create(tenant="other")
    follower = Follower(mesh, second.id)
    await until(lambda: _told(follower, 1))
    assert (follower.seen[0].phase, follower.seen[0].tasks_ahead) == (phase_pb2.TASK_PHASE_QUEUED, 1)
    worker = await mesh.worker()
    leases = await worker.lease(3)
    assert first.id in {lease.job_id for lease in leases}
    [lease] = [lease for lease in leases if lease.job_id == second.id]
    await until(lambda: _told(follower, 2))
    assert not follower.seen[-1].HasField("tasks_ahead")
    wanted = [
        (phase_pb2.TASK_PHASE_LOADING_MODEL, 0.0),
        (phase_pb2.TASK_PHASE_RUNNING, 50.0),
        (phase_pb2.TASK_PHASE_UPSCALING, 100.0),
        (phase_pb2.TASK_PHASE_STORING, 100.0),
    ]
    for count, (phase, progress) in enumerate(wanted, 1):
        item = worker_service_pb2.Progress(ref=ref(lease), progress=progress, phase=phase)
        await worker.stub.Report(worker_service_pb2.ReportRequest(session_id=worker.session, progress=[item]))
        # Each is told at once, however short the one before it was.
        await until(lambda count=count: _phases(follower, count))  # type: ignore[misc]  # bound in the loop
    assert [one.phase for one in follower.seen if not one.tasks_ahead and one.phase] == [phase for phase, _ in wanted]
    await worker.complete(lease)
    await follower.task


async def _told(follower: Follower, count: int) -> bool:
    return len(follower.seen) >= count


async def _phases(follower: Follower, count: int) -> bool:
    return sum(1 for one in follower.seen if one.phase and not one.tasks_ahead) >= count
