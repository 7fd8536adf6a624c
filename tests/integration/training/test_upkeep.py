"""The upkeep of trainings: jobs made again, ends told by events, what is old deleted, what is left behind swept."""

import asyncio
from pathlib import Path
from uuid import uuid4

from atelier_cli.backup import Stores
from atelier_cli.embedded.postgres import programs
from tests.conftest import S3Store
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
    async with asyncio.timeout(60):
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


async def test_what_is_newer_than_a_restored_backup_is_swept(
    mesh: Mesh, start_mesh: StartMesh, mesh_dsn: str, s3: S3Store, tmp_path: Path
) -> None:
    known = (await mesh.create(source_images=[data_url()]))["id"]
    stores = Stores.of(
        {
            "ATELIER_DATABASE_URL": mesh_dsn,
            "ATELIER_S3_ENDPOINT": s3.endpoint,
            "ATELIER_S3_ACCESS_KEY": s3.access_key,
            "ATELIER_S3_SECRET_KEY": s3.secret_key,
            "ATELIER_S3_BUCKET": mesh.bucket,
        },
        programs(),
    )
    await asyncio.to_thread(stores.save, tmp_path)
    newer = (await mesh.create(source_images=[data_url()]))["id"]
    await mesh.put(f"trainings/{known}/state/000001.bin", b"x")
    await mesh.put(f"trainings/{newer}/state/000001.bin", b"x")
    await mesh.put(f"trainings/{newer}.png", b"an image of the tenant's own")
    await asyncio.to_thread(stores.restore, tmp_path)
    after = await start_mesh(s3_bucket=mesh.bucket)
    await after.training.maintenance.sweep()
    assert await after.rows("SELECT id::text FROM trainings") == [(known,)]
    assert sorted(await mesh.objects("trainings/")) == sorted(
        [f"trainings/{newer}.png", f"trainings/{known}/inputs/0000.png", f"trainings/{known}/state/000001.bin"]
    )
    assert await after.rows("SELECT count(*) FROM object_sweeps") == [(0,)]
