"""The upkeep of trainings: jobs made again, ends told by events, what is old deleted, what is left behind swept."""

import asyncio
from uuid import uuid4

from tests.integration.training.conftest import PATH, Mesh, StartMesh, data_url


async def test_a_training_waits_for_tasks_to_come_back(mesh: Mesh, start_mesh: StartMesh) -> None:
    away = await start_mesh(tasks_address="127.0.0.1:9")
    created = await away.create()
    assert (created["status"], created["celery_chain_task_id"]) == ("PENDING", None)
    assert (await away.http().post(f"{PATH}{created['id']}/cancel")).status_code == 503
    await mesh.training.maintenance.make_jobs()
    assert (await mesh.get(created["id"]))["celery_chain_task_id"] == created["id"]
    ref, _ = await (await mesh.trainer()).begin()
    assert ref.job_id == created["id"]
    # The tasks service has lost its database: the job is queued again.
    await mesh.execute_tasks("DELETE FROM tasks")
    await mesh.execute_tasks("TRUNCATE queue_tenants, queue_lanes")
    await mesh.training.maintenance.reconcile()
    again, _ = await (await mesh.trainer("t/1")).begin()
    assert again.job_id == created["id"]


async def test_ends_come_by_events(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(run_loops=True, reconcile_interval_seconds=3600.0)
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, _ = await trainer.begin()
    await trainer.fail(ref, "The device has no room")
    while await mesh.tasks.relay.loop.run_once():
        pass
    async with asyncio.timeout(20):
        while (await mesh.get(ident))["status"] != "FAILED":
            await mesh.tasks.relay.loop.run_once()
            await asyncio.sleep(0.05)
    assert (await mesh.get(ident))["error_message"] == "The device has no room"


async def test_what_is_old_is_deleted_and_its_adapter_stays(mesh: Mesh) -> None:
    completed, path = await mesh.trained()
    await mesh.training.maintenance.age_out()
    assert await mesh.objects(f"trainings/{completed['id']}/saves/") != []
    await mesh.execute("UPDATE trainings SET completed_at = now() - interval '91 days'")
    await mesh.training.maintenance.age_out()
    await mesh.training.maintenance.sweep()
    assert await mesh.objects("trainings/") == []
    assert await mesh.objects("loras/") == [f"loras/{path}"]
    shown = await mesh.get(completed["id"])
    assert (shown["status"], shown["processed_dataset_path"]) == ("COMPLETED", None)


async def test_inputs_of_a_create_that_died_are_swept(mesh: Mesh) -> None:
    ident = (await mesh.create(source_images=[data_url()]))["id"]
    orphan = uuid4()
    await mesh.put(f"trainings/{orphan}/inputs/0000.png", b"x")
    for training in (ident, orphan):
        await mesh.execute(
            "INSERT INTO object_sweeps (training_id, tenant, path, due_at, is_intent) "
            "VALUES (%s, 'acme', %s, now(), true)",
            training,
            f"trainings/{training}/",
        )
    await mesh.training.maintenance.sweep()
    assert await mesh.objects("trainings/") == [f"trainings/{ident}/inputs/0000.png"]
