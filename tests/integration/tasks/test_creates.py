import asyncio
import base64
import io
import struct
import zlib
from typing import Any
from uuid import uuid4

import psutil
import pytest
from atelier.tasks.v1 import enums_pb2, face_enhancer_pb2, task_pb2, tasks_service_pb2
from PIL import Image
from prometheus_client import REGISTRY

from meshkit.catalog import OWN_PROVIDERS, PROVIDERS, TASK_TYPES
from meshkit.channel import call_metadata
from meshkit.db import DatabaseUnavailableError
from meshkit.errors import ErrorKind, MeshError
from services.tasks.catalog import Catalog
from services.tasks.postgres.store import PostgresTaskStore
from tests.integration.tasks.conftest import Mesh, StartMesh, noop, until
from tests.webp import animated_webp, solid_webp

CreateTask: Any = task_pb2.CreateTask
CreateTaskRequest = tasks_service_pb2.CreateTaskRequest


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of few bytes that claims 100,000 by 100,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def generation(**members: Any) -> task_pb2.CreateTask:
    task: task_pb2.CreateTask = CreateTask(origin_instance="tests", generation={"prompt": "a red dress", **members})
    return task


async def keyed(mesh: Mesh, key: str, task: task_pb2.CreateTask, stub: Any = None) -> tuple[task_pb2.Task, bool]:
    trailing: list[tuple[str, Any]] = []
    response = await (stub or mesh.tasks()).CreateTask(
        CreateTaskRequest(task=task), metadata=call_metadata(idempotency_key=key), trailing=trailing.extend
    )
    return response.task, ("idempotent-replayed", "true") in trailing


async def everything(mesh: Mesh, tenant: str = "acme") -> list[str]:
    return [info.path for info in await mesh.running.objects.list(tenant)]


def calls_in_flight() -> float:
    return REGISTRY.get_sample_value("atelier_rpc_server_in_flight") or 0.0


async def test_repeated_key_replays_the_first_answer(mesh: Mesh) -> None:
    first, replayed = await keyed(mesh, "k1", noop())
    assert not replayed
    second, replayed = await keyed(mesh, "k1", noop())
    assert replayed
    assert first == second
    other, _ = await keyed(mesh, "k2", noop())
    assert other.id != first.id


async def test_key_with_another_request_is_a_conflict(mesh: Mesh) -> None:
    await keyed(mesh, "k", noop())
    with pytest.raises(MeshError) as error:
        await keyed(mesh, "k", noop(priority=1))
    assert error.value.kind is ErrorKind.CONFLICT


async def test_concurrent_duplicates_make_one_task(start_mesh: StartMesh) -> None:
    replicas = [await start_mesh(), await start_mesh()]
    results = await asyncio.gather(*(keyed(replicas[n % 2], "same", noop()) for n in range(12)))
    assert len({task.id for task, _ in results}) == 1
    assert sum(not replayed for _, replayed in results) == 1
    [[count]] = await replicas[0].rows("SELECT count(*) FROM tasks")
    assert count == 1


async def test_refused_request_does_not_take_the_key(mesh: Mesh) -> None:
    with pytest.raises(MeshError):
        await keyed(mesh, "k", noop(queue_name="nowhere"))
    _, replayed = await keyed(mesh, "k", noop())
    assert not replayed


async def test_creates_that_arrive_together_are_all_accepted(mesh: Mesh) -> None:
    stub = mesh.tasks()
    created = await asyncio.gather(*(mesh.create(stub=stub) for _ in range(60)))
    assert len({task.id for task in created}) == 60
    [[pending]] = await mesh.rows("SELECT pending FROM queue_tenants")
    assert pending == 60
    [[events]] = await mesh.rows("SELECT count(*) FROM outbox WHERE subject = 'atelier.tasks.v1.task.created'")
    assert events == 60


async def test_one_member_that_cannot_be_written_does_not_fail_its_group(mesh: Mesh) -> None:
    await mesh.execute("ALTER TABLE tasks ADD CONSTRAINT no_seven CHECK (priority <> 7)")
    stub = mesh.tasks()
    results = await asyncio.gather(
        *(mesh.create(noop(priority=n), stub=stub) for n in range(12)), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if isinstance(result, BaseException)] == [7]
    [[count]] = await mesh.rows("SELECT count(*) FROM tasks")
    assert count == 11


async def test_service_names_identifiers_and_finds_them_again(mesh: Mesh) -> None:
    service = mesh.tasks("acme", ("mesh",), subject="workflows")
    ident, workflow = str(uuid4()), str(uuid4())
    first = await mesh.create(stub=service, task_id=ident, workflow_id=workflow)
    assert (first.id, first.workflow_id) == (ident, workflow)
    again = await mesh.create(noop(priority=5), stub=service, task_id=ident)
    assert (again.id, again.priority) == (ident, 0)
    with pytest.raises(MeshError) as foreign:
        await mesh.create(stub=mesh.tasks("globex", ("mesh",), subject="workflows"), task_id=ident)
    assert foreign.value.kind is ErrorKind.CONFLICT
    await mesh.tasks().DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=ident))
    with pytest.raises(MeshError) as used:
        await mesh.create(stub=service, task_id=ident)
    assert used.value.reason == "TASK_ID_USED"
    with pytest.raises(MeshError) as refused:
        await mesh.create(task_id=str(uuid4()))
    assert refused.value.kind is ErrorKind.FORBIDDEN


@pytest.mark.parametrize(
    ("task", "path"),
    [
        (CreateTask(origin_instance="t", experimental_fal={"fal_app_id": "a/b"}), "task.task_type"),
        (noop(queue_name="nowhere"), "task.queue_name"),
        (noop(provider_type=enums_pb2.PROVIDER_TYPE_VERTEX), "task.provider_type"),
        (noop(active_provider_capabilities=["VISION"]), "task.active_provider_capabilities[0]"),
        (noop(provider_config={"fal_standard": {"fal_app_id": "x/y"}}), "task.provider_config"),
        (noop(webhook_url="http://127.0.0.1/hook"), "task.webhook_url"),
        (noop(webhook_url="ftp://example.com"), "task.webhook_url"),
        (noop(fallback_provider_capabilities=["SEED"]), "task.fallback_provider_type"),
        (generation(width=0), "task.generation.width"),
        (generation(width=100_000), "task.generation.width"),
        (generation(prompt="nul \0 in it"), "task.generation.prompt"),
        (generation(reference_image_data="%%% not base64"), "task.generation.reference_image_data"),
        (generation(reference_image_data=encoded(b"not an image")), "task.generation.reference_image_data"),
        (generation(reference_image_data=encoded(bomb())), "task.generation.reference_image_data"),
        (generation(reference_image_data="staging:staging/none.png"), "task.generation.reference_image_data"),
        (generation(reference_image_data="staging:../secret.png"), "task.generation.reference_image_data"),
        (generation(reference_image_data="staging:generations/x.png"), "task.generation.reference_image_data"),
        (generation(reference_image_url="http://169.254.169.254/latest"), "task.generation.reference_image_url"),
        (generation(reference_image_url="http://localhost/x.png"), "task.generation.reference_image_url"),
        (generation(reference_image_url="generations/none.png"), "task.generation.reference_image_url"),
        (generation(reference_image_url="../other/x.png"), "task.generation.reference_image_url"),
        (generation(subject_model_path="identities/none.safetensors"), "task.generation.subject_model_path"),
        (generation(style_model_path="../styles/x.safetensors"), "task.generation.style_model_path"),
    ],
)
async def test_bad_input_is_refused_and_leaves_nothing_behind(mesh: Mesh, task: task_pb2.CreateTask, path: str) -> None:
    tenant = f"t{uuid4().hex}"
    with pytest.raises(MeshError) as error:
        await mesh.create(task, tenant=tenant)
    assert error.value.kind is ErrorKind.INVALID
    assert path in [violation.path for violation in error.value.violations]
    assert await everything(mesh, tenant) == []
    assert await mesh.rows("SELECT FROM tasks") == []
    assert await mesh.rows("SELECT FROM outbox") == []


async def test_reference_given_as_data_becomes_an_object(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    data = f"data:image/png;base64,{encoded(png())}"
    task = await mesh.create(generation(reference_image_data=data, reference_image_strength=40), tenant=tenant)
    path = f"generations/{task.id}/inputs/reference.png"
    assert task.generation.reference_image_path == path
    assert await mesh.running.objects.get(tenant, path) == png()
    assert task.generation.seed >= 0
    assert (task.generation.width, task.generation.height) == (1024, 1024)
    [[spec, sweeps]] = await mesh.rows("SELECT spec, (SELECT count(*) FROM object_sweeps) FROM tasks")
    stored = task_pb2.CreateTask.FromString(spec)
    assert not stored.generation.HasField("reference_image_data")
    assert stored.generation.seed == task.generation.seed
    assert sweeps == 0


async def test_a_seed_without_a_field_is_drawn_into_the_config(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "a.png", png(), "image/png")

    async def config(**given: Any) -> dict[str, Any]:
        spec = CreateTask(origin_instance="t", video_generation={"prompt": "it turns", "input_image_url": "a.png"})
        if given:
            spec.config.update(given)
        return dict((await mesh.create(spec, tenant=tenant)).config)

    drawn, other = await config(), await config(mine=1)
    assert 0 <= drawn["seed"] < 2**53
    assert drawn["seed"].is_integer()
    assert drawn["seed"] != other["seed"]
    assert other["mine"] == 1
    assert (await config(seed=7))["seed"] == 7
    assert 0 <= (await config(seed=None))["seed"] < 2**53


async def test_upload_is_moved_to_its_task(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "staging/abc", png(), "image/png")
    adjust = CreateTask(origin_instance="t", image_adjuster={"input_image": "staging:staging/abc", "aspect_ratio": 1.0})
    task = await mesh.create(adjust, tenant=tenant)
    assert task.image_adjuster.input_image_path == f"adjustments/{task.id}/inputs/input.png"
    assert await everything(mesh, tenant) == [task.image_adjuster.input_image_path]


async def test_image_may_be_a_path_an_address_or_base64(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "generations/a/1/image.png", png(), "image/png")
    await mesh.running.objects.put(tenant, "plain/name", png(), "image/png")

    async def shown(value: str) -> str:
        spec = CreateTask(origin_instance="t", image_adjuster={"input_image": value, "aspect_ratio": 1.0})
        return (await mesh.create(spec, tenant=tenant)).image_adjuster.input_image_path

    assert await shown("generations/a/1/image.png") == "generations/a/1/image.png"
    assert await shown("plain/name") == "plain/name"
    assert await shown("https://example.com/a.png") == "https://example.com/a.png"
    assert (await shown(encoded(png()))).endswith("/inputs/input.png")


async def test_known_adapters_of_the_tenant_and_of_all_are_taken(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "loras/identities/ada.safetensors", b"x")
    await mesh.running.objects.put("shared", "loras/styles/ink.safetensors", b"x")
    spec = generation(subject_model_path="identities/ada.safetensors", style_model_path="styles/ink.safetensors")
    await mesh.create(spec, tenant=tenant)
    [[keys]] = await mesh.rows("SELECT warm_keys FROM tasks")
    assert keys == ["identities/ada.safetensors", "styles/ink.safetensors"]


async def test_inputs_are_removed_where_the_write_fails(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.execute("ALTER TABLE tasks ADD CONSTRAINT none CHECK (priority <> 7)")
    spec = generation(reference_image_data=encoded(png()))
    spec.priority = 7
    with pytest.raises(MeshError) as error:
        await mesh.create(spec, tenant=tenant)
    assert error.value.kind is ErrorKind.INTERNAL
    assert await everything(mesh, tenant) == []


async def test_inputs_stay_where_the_caller_leaves_while_its_create_is_committed(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    stub = mesh.tasks(tenant)
    in_flight = calls_in_flight()
    async with mesh.running.database.transaction() as conn:
        await conn.execute("LOCK TABLE tasks IN SHARE MODE")
        call = asyncio.create_task(mesh.create(generation(reference_image_data=encoded(png())), stub=stub))

        async def blocked() -> bool:
            return bool(await mesh.rows("SELECT FROM pg_locks WHERE NOT granted AND relation = 'tasks'::regclass"))

        await until(blocked)
        call.cancel()

        async def left() -> bool:
            return calls_in_flight() == in_flight

        await until(left)

    async def committed() -> bool:
        return bool(await mesh.rows("SELECT FROM tasks"))

    await until(committed)
    [path] = await everything(mesh, tenant)
    assert path.endswith("inputs/reference.png")


async def test_inputs_stay_where_the_answer_to_the_commit_was_lost(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = PostgresTaskStore.create_many

    async def cut_off(store: PostgresTaskStore, creations: Any) -> Any:
        await commit(store, creations)
        raise DatabaseUnavailableError

    monkeypatch.setattr(PostgresTaskStore, "create_many", cut_off)
    stub = mesh.tasks(tenant := f"t{uuid4().hex}")
    request = CreateTaskRequest(task=generation(reference_image_data=encoded(png())))
    response = await stub.CreateTask(request, metadata=call_metadata(idempotency_key="k"))
    assert await everything(mesh, tenant) == [f"generations/{response.task.id}/inputs/reference.png"]
    assert len(await mesh.rows("SELECT FROM tasks")) == 1


@pytest.mark.parametrize("tenant", ["", "ops"])
async def test_operators_key_belongs_to_the_tenant_it_creates_for(mesh: Mesh, tenant: str) -> None:
    operator = mesh.tasks(tenant, ("operator",))
    for key, named in (("k1", "globex"), ("k1", "initech"), ("k2", "globex")):
        first, replayed = await keyed(mesh, key, noop(origin_tenant_id=named), operator)
        assert (first.origin_tenant_id, replayed) == (named, False)
        assert await keyed(mesh, key, noop(origin_tenant_id=named), operator) == (first, True)
    assert await mesh.rows("SELECT DISTINCT tenant FROM idempotency_keys ORDER BY 1") == [("globex",), ("initech",)]
    with pytest.raises(MeshError) as error:
        await keyed(mesh, "k1", noop(origin_tenant_id="globex"), mesh.tasks("initech"))
    assert error.value.kind is ErrorKind.FORBIDDEN, "a replay would show another tenant's task"


async def test_token_without_tenant_gets_the_same_with_and_without_a_key(mesh: Mesh) -> None:
    operator = mesh.tasks("", ("operator",))
    for create in (mesh.create(noop(), stub=operator), keyed(mesh, "k", noop(), operator)):
        with pytest.raises(MeshError) as error:
            await create
        assert error.value.reason == "NO_TENANT"


async def test_inputs_of_a_create_that_died_are_swept(mesh: Mesh) -> None:
    tenant = f"t{uuid4().hex}"
    ident = uuid4()
    path = f"generations/{ident}/inputs/reference.png"
    await mesh.running.objects.put(tenant, path, png())
    await mesh.execute(
        "INSERT INTO object_sweeps VALUES (%s, %s, %s, now() - interval '1 hour')",
        ident,
        tenant,
        f"generations/{ident}/",
    )
    await mesh.running.maintenance.sweep_objects()
    assert await everything(mesh, tenant) == []
    assert await mesh.rows("SELECT FROM object_sweeps") == []


async def test_old_uploads_are_swept_also_those_of_a_tenant_without_tasks(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(staging_max_age_seconds=0.001)
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "staging/old", b"x")
    await asyncio.sleep(1.1)  # the store tells the age in whole seconds
    await mesh.running.maintenance.sweep_staging()
    assert await everything(mesh, tenant) == []


async def test_foreign_tenant_is_forbidden_and_the_own_one_filled_in(mesh: Mesh) -> None:
    task = await mesh.create(noop(origin_tenant_id="acme"))
    assert task.origin_tenant_id == "acme"
    with pytest.raises(MeshError) as error:
        await mesh.create(noop(origin_tenant_id="globex"))
    assert error.value.kind is ErrorKind.FORBIDDEN
    operator = mesh.tasks("ops", ("operator",))
    assert (await mesh.create(noop(origin_tenant_id="globex"), stub=operator)).origin_tenant_id == "globex"


async def test_noop_is_not_served_unless_configured(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(enable_noop=False)
    with pytest.raises(MeshError) as error:
        await mesh.create()
    assert error.value.message.endswith(f"serves {', '.join(Catalog().public_types)}")


async def test_catalog_tells_what_is_served(mesh: Mesh) -> None:
    catalog = await mesh.tasks().GetCatalog(tasks_service_pb2.GetCatalogRequest())
    public = [TASK_TYPES[name].number for name in Catalog().public_types]
    assert list(catalog.task_types) == public
    to_service = await mesh.tasks("", ("mesh",)).GetCatalog(tasks_service_pb2.GetCatalogRequest())
    assert list(to_service.task_types) == [*public, enums_pb2.TASK_TYPE_NOOP], "workflows checks steps by it"
    assert "inference" in catalog.queues
    served = {PROVIDERS[name].number for name in OWN_PROVIDERS}
    assert {provider.provider_type for provider in catalog.providers} == served, "those that call nobody"


async def test_duplicate_whose_upload_the_first_used_up_is_replayed(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = f"t{uuid4().hex}"
    await mesh.running.objects.put(tenant, "staging/abc", png(), "image/png")
    adjust = CreateTask(origin_instance="t", image_adjuster={"input_image": "staging:staging/abc", "aspect_ratio": 1.0})
    first, _ = await keyed(mesh, "k", adjust, mesh.tasks(tenant))
    find, asked = PostgresTaskStore.find_replay, []

    async def too_early(store: PostgresTaskStore, *arguments: Any) -> bytes | None:
        asked.append(arguments)
        return None if len(asked) == 1 else await find(store, *arguments)

    monkeypatch.setattr(PostgresTaskStore, "find_replay", too_early)
    assert await keyed(mesh, "k", adjust, mesh.tasks(tenant)) == (first, True)
    assert await everything(mesh, tenant) == [first.image_adjuster.input_image_path]


async def test_chosen_identifiers_are_taken_together_and_once(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = PostgresTaskStore.create_many

    async def counted(store: PostgresTaskStore, creations: Any) -> Any:
        groups.append(len(creations))
        return await commit(store, creations)

    monkeypatch.setattr(PostgresTaskStore, "create_many", counted)
    service = mesh.tasks("acme", ("mesh",), subject="workflows")
    idents = [str(uuid4()) for _ in range(8)]
    deleted, older = idents[0], idents[1]
    for ident in (deleted, older):
        await mesh.create(stub=service, task_id=ident)
    await mesh.tasks().DeleteTask(tasks_service_pb2.DeleteTaskRequest(task_id=deleted))
    groups.clear()
    results = await asyncio.gather(
        *(mesh.create(noop(priority=1), stub=service, task_id=ident) for ident in idents * 2), return_exceptions=True
    )
    assert max(groups) > 2, "they share transactions"
    refused = [result for result in results if isinstance(result, MeshError)]
    assert [error.reason for error in refused] == ["TASK_ID_USED"] * 2
    taken = [result for result in results if not isinstance(result, BaseException)]
    assert sorted(task.id for task in taken) == sorted(idents[1:] * 2)
    assert {task.priority for task in taken if task.id == older} == {0}
    [[tasks, waiting]] = await mesh.rows("SELECT (SELECT count(*) FROM tasks), (SELECT pending FROM queue_lanes)")
    assert (tasks, waiting) == (7, 7), "each is counted once"


async def test_pictures_of_64_megapixels_in_creates_take_the_services_memory_neither_while_nor_after(
    mesh: Mesh,
) -> None:
    large = encoded(solid_webp(8000, 8000))
    await mesh.tasks().CreateTask(CreateTaskRequest(task=generation(reference_image_data=encoded(png()))))
    own = psutil.Process()
    before = own.memory_info().rss
    creating = [
        asyncio.ensure_future(
            mesh.tasks().CreateTask(CreateTaskRequest(task=generation(reference_image_data=large)), timeout=120)
        )
        for _ in range(4)
    ]
    most, others = 0, 0
    while not all(one.done() for one in creating):
        most = max(most, own.memory_info().rss)
        # Another tenant's picture is judged while those are: it waits for none of them.
        task = generation(reference_image_data=encoded(png()))
        await mesh.tasks("other").CreateTask(CreateTaskRequest(task=task))
        others += 1
    assert others > len(creating)
    assert most - before < 100 * 1024 * 1024
    for one in creating:
        assert (await one).task.id


async def test_an_animation_of_large_frames_is_refused_and_holds_up_nobody(mesh: Mesh) -> None:
    data = animated_webp(8000, 8000, 4)
    assert len(data) < 300
    for _ in range(4):
        with pytest.raises(MeshError) as error:
            await mesh.tasks().CreateTask(CreateTaskRequest(task=generation(reference_image_data=encoded(data))))
        assert error.value.violations[0].type == "image_size"
        assert error.value.violations[0].path == "task.generation.reference_image_data"


async def test_a_wrong_member_of_config_that_steers_a_worker_is_refused_at_create_and_at_update(mesh: Mesh) -> None:
    def face(**config: Any) -> task_pb2.CreateTask:
        detail = face_enhancer_pb2.CreateFaceEnhancerTask(input_image="https://pics.example/a.png")
        task = task_pb2.CreateTask(origin_instance="test", face_enhancer=detail)
        task.config.update(config)
        return task

    for config, path in (({"max_retries": 99}, "max_retries"), ({"dists_threshold": 0.2}, "dists_threshold")):
        with pytest.raises(MeshError) as error:
            await mesh.create(face(**config))
        assert [one.path for one in error.value.violations] == [f"task.config.{path}"]
    with pytest.raises(MeshError) as error:
        await mesh.create(face(metadata="no"))
    assert [one.path for one in error.value.violations] == ["task.config.metadata"]
    made = await mesh.create(face(max_retries=1, mine="x"))
    assert (made.face_enhancer.face_detected, made.face_enhancer.attempts_used) == (False, 0)
    assert not made.face_enhancer.HasField("final_ssim_score")
    update = task_pb2.TaskUpdate()
    update.config.update({"max_retries": -1})
    change = tasks_service_pb2.UpdateTaskRequest(task_id=made.id, update=update)
    change.update_mask.paths.append("config")
    with pytest.raises(MeshError) as error:
        await mesh.tasks().UpdateTask(change)
    assert [one.path for one in error.value.violations] == ["update.config.max_retries"]
