"""The second provider of a task: when it takes over, what changes, and that nothing ever goes back."""

from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2, worker_service_pb2
from atelier.tasks.v1.detail_enhancer_pb2 import CreateDetailEnhancerTask
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.errors import MeshError
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, age_session, ref
from tests.integration.tasks.test_service_requests import ACCEPTED, note, request

LOCAL, FAL = enums_pb2.PROVIDER_TYPE_LOCAL, enums_pb2.PROVIDER_TYPE_FAL_STANDARD
GARMENT = enums_pb2.PROVIDER_TYPE_FAL_GARMENT_FIXER
GENERATION, DETAIL = enums_pb2.TASK_TYPE_GENERATION, enums_pb2.TASK_TYPE_DETAIL_ENHANCER
PROVIDER, VALIDATION = enums_pb2.ERROR_CATEGORY_PROVIDER, enums_pb2.ERROR_CATEGORY_VALIDATION
PENDING, FAILED = enums_pb2.TASK_STATUS_PENDING, enums_pb2.TASK_STATUS_FAILED
APP = "fal-ai/flux/dev"
SERVED: dict[str, Any] = {"served_providers": ("LOCAL", "FAL_STANDARD", "FAL_GARMENT_FIXER")}


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(**SERVED)


def drawing(**more: Any) -> task_pb2.CreateTask:
    """A task of an application at fal, which this mesh's own device takes over."""
    return task_pb2.CreateTask(
        origin_instance="tests",
        provider_type=FAL,
        generation=CreateGenerationTask(prompt="a hat", fal_app_id=APP),
        fallback_provider_type=LOCAL,
        fallback_provider_capabilities=["TEXT_TO_IMAGE", "SEED"],
        **more,
    )


async def worker_of(mesh: Mesh, provider: int, queue: str, task_type: int = GENERATION) -> Worker:
    pair = worker_service_pb2.ServedPair(
        task_type=task_type,  # type: ignore[arg-type] # numbers off the wire
        provider_type=provider,  # type: ignore[arg-type] # numbers off the wire
        job_kind=worker_service_pb2.JOB_KIND_TASK,
    )
    return await mesh.worker(queues=(queue,), pairs=(pair,), name=f"w/{queue}")


async def fail(
    worker: Worker,
    lease: worker_service_pb2.Lease,
    category: enums_pb2.ErrorCategory.ValueType = PROVIDER,
    *,
    retryable: bool = False,
    retry_after: int | None = None,
) -> bool:
    answer = await worker.stub.Fail(
        worker_service_pb2.FailRequest(
            session_id=worker.session,
            ref=ref(lease),
            message="broken",
            category=category,
            retryable=retryable,
            retry_after=None if retry_after is None else Duration(seconds=retry_after),
        )
    )
    return bool(answer.requeued)


async def counted(mesh: Mesh) -> list[Any]:
    return await mesh.rows("SELECT queue, lane, pending FROM queue_lanes WHERE pending > 0 ORDER BY queue")


async def test_a_fallback_takes_over_with_its_own_queue_settings_capabilities_and_retries(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    fal = await worker_of(mesh, FAL, "fal")
    [first] = await fal.lease()
    await fal.fail(first)
    await mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
    await mesh.running.maintenance.promote()
    [second] = await fal.lease()
    await note(fal, second, request(ACCEPTED, service_task_id="req-1"))
    assert (await mesh.get(task.id)).retry_count == 1
    assert await fail(fal, second)
    shown = await mesh.get(task.id)
    assert (shown.status, shown.provider_type, shown.queue_name, shown.retry_count) == (PENDING, LOCAL, "inference", 0)
    assert list(shown.active_provider_capabilities) == ["TEXT_TO_IMAGE", "SEED"]
    assert not shown.HasField("provider_config")
    assert not shown.HasField("service_task_id")
    assert not shown.generation.HasField("fal_app_id")
    assert not shown.generation.HasField("fal_request_id")
    assert shown.fallback_provider_type == LOCAL
    assert list(shown.errors) == ["broken", "broken"]
    assert await mesh.rows("SELECT state, provider_type FROM service_requests") == [("UNKNOWN", "FAL_STANDARD")]
    assert await counted(mesh) == [("inference", "GENERATION/LOCAL", 1)]
    assert not await fal.lease(wait=0.1)
    local = await worker_of(mesh, LOCAL, "inference")
    for attempt in range(3, 7):
        [lease] = await local.lease()
        assert (lease.attempt, lease.task.provider_type, lease.spec.provider_type) == (attempt, LOCAL, LOCAL)
        assert not lease.service_requests
        assert not lease.spec.HasField("provider_config")
        requeued = await local.fail(lease)
        assert requeued is (attempt < 6)
        await mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
        await mesh.running.maintenance.promote()
    over = await mesh.get(task.id)
    assert (over.status, over.provider_type, over.retry_count, over.error_category) == (FAILED, LOCAL, 3, PROVIDER)


async def test_a_queue_that_the_caller_named_was_the_first_providers(mesh: Mesh) -> None:
    task = await mesh.create(drawing(queue_name="vertex"))
    vertex = await worker_of(mesh, FAL, "vertex")
    [lease] = await vertex.lease()
    await fail(vertex, lease)
    assert (await mesh.get(task.id)).queue_name == "inference"


async def test_a_fallback_at_fal_gets_its_own_application_and_names_its_own_request(mesh: Mesh) -> None:
    spec = task_pb2.CreateTask(
        origin_instance="tests",
        generation=CreateGenerationTask(prompt="a hat"),
        fallback_provider_type=FAL,
    )
    spec.fallback_provider_config.fal_standard.fal_app_id = APP
    task = await mesh.create(spec)
    assert not task.generation.HasField("fal_app_id")
    local = await worker_of(mesh, LOCAL, "inference")
    [lease] = await local.lease()
    await fail(local, lease, enums_pb2.ERROR_CATEGORY_CONTENT_POLICY, retryable=True)
    shown = await mesh.get(task.id)
    assert (shown.provider_type, shown.queue_name, shown.generation.fal_app_id) == (FAL, "fal", APP)
    assert await counted(mesh) == [("fal", f"GENERATION/FAL_STANDARD/{APP}", 1)]
    fal = await worker_of(mesh, FAL, "fal")
    [lease] = await fal.lease()
    assert lease.spec.provider_config.fal_standard.fal_app_id == lease.spec.generation.fal_app_id == APP
    await note(fal, lease, request(ACCEPTED, service_task_id="req-2"))
    shown = await mesh.get(task.id)
    assert shown.provider_config.fal_standard.fal_request_id == shown.generation.fal_request_id == "req-2"
    # An operator's settings for the fallback are its next ones; it took over already, and does not again.
    await fail(fal, lease)
    assert (await mesh.get(task.id)).status == FAILED


async def test_a_mistake_of_the_caller_is_nobody_elses_to_make_good(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    fal = await worker_of(mesh, FAL, "fal")
    [lease] = await fal.lease()
    assert not await fail(fal, lease, VALIDATION, retryable=True)
    shown = await mesh.get(task.id)
    assert (shown.status, shown.provider_type, shown.error_category) == (FAILED, FAL, VALIDATION)


@pytest.mark.parametrize(("seconds", "provider"), [(30, FAL), (3000, LOCAL)])
async def test_a_provider_that_asks_for_too_long_a_wait_is_left_for_the_fallback(
    mesh: Mesh, seconds: int, provider: int
) -> None:
    task = await mesh.create(drawing())
    fal = await worker_of(mesh, FAL, "fal")
    [lease] = await fal.lease()
    assert await fail(fal, lease, enums_pb2.ERROR_CATEGORY_RATE_LIMIT, retryable=True, retry_after=seconds)
    assert (await mesh.get(task.id)).provider_type == provider
    [[wait]] = await mesh.rows("SELECT coalesce(extract(epoch FROM not_before - now()), 0)::float8 FROM tasks")
    assert wait > 25 if provider == FAL else wait == 0


async def test_progress_never_goes_back_over_retries_and_a_fallback(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    fal = await worker_of(mesh, FAL, "fal")
    [lease] = await fal.lease()
    await fal.report(lease, 60.0)
    await mesh.running.maintenance._sessions._progress.flush()
    await fail(fal, lease)
    assert (await mesh.get(task.id)).progress == 60.0
    local = await worker_of(mesh, LOCAL, "inference")
    await local.lease()
    assert (await mesh.get(task.id)).progress == 60.0


async def test_a_result_of_the_fallback_says_so_where_its_type_tells(mesh: Mesh) -> None:
    detail = CreateDetailEnhancerTask(
        base_image="https://example.com/a.png", reference_image="https://example.com/b.png"
    )
    spec = task_pb2.CreateTask(
        origin_instance="tests", detail_enhancer=detail, provider_type=GARMENT, fallback_provider_type=LOCAL
    )
    fell_back, stayed = await mesh.create(spec), await mesh.create(spec)
    fal = await worker_of(mesh, GARMENT, "fal", DETAIL)
    leases = {lease.job_id: lease for lease in await fal.lease(2)}
    await fail(fal, leases[fell_back.id])
    await fal.complete(leases[stayed.id])
    local = await worker_of(mesh, LOCAL, "inference", DETAIL)
    [lease] = await local.lease()
    assert not (await mesh.get(fell_back.id)).detail_enhancer.fallback_used
    result = task_pb2.TaskResult()
    result.detail_enhancer.SetInParent()
    completion = worker_service_pb2.Completion(ref=ref(lease), result=result)
    await local.complete_many(completion)
    assert (await mesh.get(fell_back.id)).detail_enhancer.fallback_used
    assert not (await mesh.get(stayed.id)).detail_enhancer.fallback_used


async def test_a_lost_attempt_whose_request_was_accepted_costs_no_retry(mesh: Mesh) -> None:
    task = await mesh.create(drawing())
    await mesh.execute("UPDATE tasks SET retry_count = 3")
    fal = await worker_of(mesh, FAL, "fal")
    [lease] = await fal.lease()
    await note(fal, lease, request(ACCEPTED, service_task_id="req-1"))
    await fal.heartbeat(lease)
    await age_session(mesh, fal)
    await mesh.running.maintenance.expire()
    shown = await mesh.get(task.id)
    assert (shown.status, shown.provider_type, shown.retry_count, shown.is_resumed) == (PENDING, FAL, 3, True)
    other = await worker_of(mesh, FAL, "fal")
    [again] = await other.lease()
    assert [each.service_task_id for each in again.service_requests] == ["req-1"]
    # Without one the retries are spent, and the fallback takes over.
    await mesh.execute("UPDATE service_requests SET state = 'FAILED', ended_at = now()")
    await other.heartbeat(again)
    await age_session(mesh, other)
    await mesh.running.maintenance.expire()
    assert (await mesh.get(task.id)).provider_type == LOCAL


@pytest.mark.parametrize(
    ("state", "blocked", "waited", "falls_back"),
    [
        ("open", None, 61, True),
        ("half_open", None, 61, True),
        ("open", None, 30, False),
        ("closed", 30, 300, False),
        ("closed", 300, 0, True),
        ("closed", None, 300, False),
    ],
)
async def test_what_waits_too_long_for_a_provider_that_takes_no_requests_falls_back(
    mesh: Mesh, state: str, blocked: int | None, waited: int, *, falls_back: bool
) -> None:
    task, delayed, alone = await mesh.create(drawing()), await mesh.create(drawing()), drawing()
    alone.ClearField("fallback_provider_type")
    alone.ClearField("fallback_provider_capabilities")
    stays = await mesh.create(alone)
    fal = await worker_of(mesh, FAL, "fal")
    leases = {lease.job_id: lease for lease in await fal.lease(3)}
    await fail(fal, leases[delayed.id], retryable=True, retry_after=50)
    await fal.release(leases[task.id], leases[stays.id])
    await mesh.execute(
        "INSERT INTO provider_gates (provider, key, state, opened_at, blocked_until) VALUES ('FAL_STANDARD', %s, "
        "%s, CASE WHEN %s <> 'closed' THEN now() END, now() + %s * interval '1 second') "
        "ON CONFLICT (provider, key) DO UPDATE SET state = excluded.state, opened_at = excluded.opened_at, "
        "blocked_until = excluded.blocked_until",
        APP,
        state,
        state,
        blocked,
    )
    await mesh.execute("UPDATE tasks SET updated_at = now() - %s * interval '1 second'", waited)
    await mesh.running.maintenance.fall_back()
    expected = LOCAL if falls_back else FAL
    assert [(await mesh.get(one.id)).provider_type for one in (task, delayed, stays)] == [expected, expected, FAL]
    lane = f"GENERATION/FAL_STANDARD/{APP}"
    if falls_back:
        assert "FAL_STANDARD takes no requests now" in (await mesh.get(task.id)).errors
        assert await counted(mesh) == [("fal", lane, 1), ("inference", "GENERATION/LOCAL", 2)]
        assert await mesh.rows("SELECT count(*) FROM tasks WHERE not_before IS NOT NULL") == [(0,)]
    else:
        assert await counted(mesh) == [("fal", lane, 2)]


async def test_what_waits_too_long_for_a_rate_falls_back(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(**SERVED, provider_limits={"FAL_STANDARD": {"rate": 0.001, "burst": 1}})
    called, waits, new = [await mesh.create(drawing()) for _ in range(3)]
    fal = await worker_of(mesh, FAL, "fal")
    assert [lease.job_id for lease in await fal.lease(4)] == [called.id]
    assert await fal.lease(4, wait=0.1) == []
    await mesh.running.maintenance.fall_back()
    assert (await mesh.get(waits.id)).provider_type == FAL
    await mesh.execute("UPDATE provider_gates SET waiting_since = now() - interval '61 s' WHERE key = %s", APP)
    await mesh.execute("UPDATE tasks SET updated_at = now() - interval '61 s' WHERE id = %s", waits.id)
    await mesh.running.maintenance.fall_back()
    assert [(await mesh.get(one.id)).provider_type for one in (called, waits, new)] == [FAL, LOCAL, FAL]


async def test_a_request_that_is_paid_for_keeps_its_task_at_a_provider_that_takes_no_more(mesh: Mesh) -> None:
    task, other = await mesh.create(drawing()), await mesh.create(drawing())
    fal = await worker_of(mesh, FAL, "fal")
    leases = {lease.job_id: lease for lease in await fal.lease(2)}
    await note(fal, leases[task.id], request(ACCEPTED, service_task_id="req-1"))
    await fal.release(leases[task.id], leases[other.id])
    await mesh.execute(
        "INSERT INTO provider_gates (provider, key, state, opened_at) VALUES ('FAL_STANDARD', %s, 'open', now()) "
        "ON CONFLICT (provider, key) DO UPDATE SET state = excluded.state, opened_at = excluded.opened_at",
        APP,
    )
    await mesh.execute("UPDATE tasks SET updated_at = now() - interval '300 seconds'")
    await mesh.running.maintenance.fall_back()
    assert [(await mesh.get(one.id)).provider_type for one in (task, other)] == [FAL, LOCAL]
    assert await mesh.rows("SELECT state FROM service_requests") == [("ACCEPTED",)]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"fallback_provider_type": enums_pb2.PROVIDER_TYPE_VERTEX}, "task.fallback_provider_type"),
        ({"fallback_provider_type": GARMENT}, "task.fallback_provider_type"),
        ({"fallback_provider_capabilities": ["VISION"]}, "task.fallback_provider_capabilities[2]"),
        ({"fallback_provider_config": {"fal_standard": {"fal_app_id": APP}}}, "task.fallback_provider_config"),
    ],
    ids=["not served", "does not serve the type", "lacks a capability", "settings of another"],
)
async def test_a_fallback_that_could_not_take_over_is_refused_at_once(
    mesh: Mesh, changes: dict[str, Any], path: str
) -> None:
    spec = drawing()
    spec.MergeFrom(task_pb2.CreateTask(**changes))
    with pytest.raises(MeshError) as error:
        await mesh.create(spec)
    assert error.value.violations[0].path == path


async def test_an_operator_gives_a_waiting_task_a_fallback_and_takes_it_away(mesh: Mesh) -> None:
    spec = drawing()
    spec.ClearField("fallback_provider_type")
    spec.ClearField("fallback_provider_capabilities")
    task = await mesh.create(spec)
    operator = mesh.tasks("ops", ("operator",))

    async def change(**values: Any) -> None:
        mask = FieldMask(paths=["fallback_provider_type"])
        await operator.UpdateTask(
            tasks_service_pb2.UpdateTaskRequest(task_id=task.id, update=task_pb2.TaskUpdate(**values), update_mask=mask)
        )

    await change(fallback_provider_type=LOCAL)
    assert await mesh.rows("SELECT fallback FROM tasks") == [("AVAILABLE",)]
    await change()
    assert await mesh.rows("SELECT fallback FROM tasks") == [(None,)]
