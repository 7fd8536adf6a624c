"""The life of a training: its job, what a trainer tells, fencing, ends, events, webhooks."""

import asyncio
import json
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from atelier.tasks.v1 import worker_service_pb2
from atelier.training.v1 import trainer_service_pb2, training_pb2
from atelier.training.v1.trainer_service_pb2_grpc import TrainerServiceStub
from websockets.asyncio.client import connect

from meshkit.errors import ErrorKind, MeshError
from tests.integration.training.conftest import LORA, PATH, SHA, Mesh, StartMesh


def losses(*steps: int) -> list[training_pb2.LossPoint]:
    return [training_pb2.LossPoint(step=step, loss=1.0 / step) for step in steps]


async def refused(call: Any) -> str:
    with pytest.raises(MeshError) as error:
        await call
    assert error.value.kind in (ErrorKind.CONFLICT, ErrorKind.INVALID)
    return error.value.reason if error.value.kind is ErrorKind.CONFLICT else "INVALID"


async def told(mesh: Mesh) -> list[tuple[str, str]]:
    rows = await mesh.rows("SELECT subject, headers ->> 'Atelier-Event-Type' FROM outbox ORDER BY id")
    return [(subject.removeprefix("atelier.training.v1."), kind) for subject, kind in rows]


async def test_a_training_goes_from_pending_to_completed(mesh: Mesh) -> None:
    created = await mesh.create(sample_prompts=["a [trigger]"])
    ident = created["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    assert (ref.job_id, spec.tenant, spec.folder, spec.total_steps) == (ident, "acme", f"trainings/{ident}/", 10)
    assert list(spec.training.source_images) == created["source_images"]
    assert not spec.HasField("resume")
    assert not spec.HasField("dataset_manifest_path")
    begun = await mesh.get(ident)
    assert (begun["status"], begun["celery_preprocessing_task_id"]) == ("PREPROCESSING", ident)
    assert begun["started_at"] == begun["preprocessing_started_at"] is not None
    seen = [begun["progress"]]
    for stage, done in [("downloading", 1), ("validating", 0), ("validating", 2), ("transforming", 1)]:
        await trainer.reports.ReportStage(
            trainer_service_pb2.ReportStageRequest(
                ref=ref,
                stage=stage,
                processed_files=done,
                total_files=2,
                rejects=[training_pb2.RejectedImage(name="b.png", reason="is no image")],
            )
        )
        shown = await mesh.get(ident)
        assert shown["preprocessing_stage"] == stage
        assert (shown["processed_files_count"], shown["total_files_count"]) == (done, 2)
        seen.append(shown["progress"])
    rejects = (await mesh.http().get(f"{PATH}{ident}/dataset")).json()
    assert rejects == {"images": [], "rejects": [{"name": "b.png", "reason": "is no image"}], "manifest_path": None}
    await trainer.prepare(ref, spec)
    prepared = await mesh.get(ident)
    assert (prepared["status"], prepared["progress"], prepared["preprocessing_stage"]) == ("TRAINING", 10, "completed")
    assert prepared["processed_dataset_path"] == f"trainings/{ident}/dataset/1"
    assert (prepared["processed_files_count"], prepared["total_files_count"]) == (1, 2)
    for step in (1, 5, 3, 10):
        await trainer.steps(ref, step, eta_seconds=10 - step, losses=losses(step), log_lines=[f"step {step}"])
        shown = await mesh.get(ident)
        assert (shown["eta_seconds"], shown["celery_training_task_id"]) == (10 - step, ident)
        seen.append(shown["progress"])
    assert seen == sorted(seen)
    assert shown["current_step"] == 10
    assert shown["logs"] == "step 1\nstep 5\nstep 3\nstep 10\n"
    await mesh.put(f"{spec.folder}saves/last.safetensors", LORA)
    path = await trainer.finish(ref, spec)
    assert path.startswith("product/zorblat-")
    assert await trainer.finish(ref, spec) == path, "it is registered once"
    assert await mesh.training.objects.get("acme", f"loras/{path}") == LORA
    await trainer.complete(ref)
    await mesh.training.maintenance.reconcile()
    ended = await mesh.get(ident)
    assert (ended["status"], ended["progress"], ended["current_step"]) == ("COMPLETED", 100, 10)
    assert (ended["local_model_path"], ended["eta_seconds"], ended["error_message"]) == (path, None, None)
    assert ended["completed_at"] is not None
    assert [subject for subject, _ in await told(mesh)] == [
        "training.pending",
        "preprocessing.running",
        "training.preprocessing",
        "preprocessing.running",
        "preprocessing.running",
        "preprocessing.running",
        "preprocessing.completed",
        "training.training",
        "training.completed",
    ]
    await mesh.training.maintenance.sweep()
    assert await mesh.objects(f"trainings/{ident}/inputs/") == []
    assert await mesh.objects(f"trainings/{ident}/saves/") != []


async def test_a_worker_that_is_bound_to_other_queues_tells_nothing_of_trainings(mesh: Mesh) -> None:
    await mesh.create()
    ref, _ = await (await mesh.trainer()).begin()
    token = mesh.token("", ("worker",), subject="painter", queues=("inference",))
    stranger = mesh.stub(mesh.training.address, token, TrainerServiceStub)
    adapter = trainer_service_pb2.FinishedAdapter(path="a", size=1, sha256=SHA)
    for call in (
        stranger.BeginAttempt(trainer_service_pb2.BeginAttemptRequest(ref=ref)),
        stranger.ReportSteps(trainer_service_pb2.ReportStepsRequest(ref=ref, step=1)),
        stranger.FinishTraining(trainer_service_pb2.FinishTrainingRequest(ref=ref, adapter=adapter)),
    ):
        with pytest.raises(MeshError) as error:
            await call
        assert error.value.kind is ErrorKind.FORBIDDEN


async def test_reports_of_an_older_attempt_and_of_an_ended_training_are_refused(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    first = await mesh.trainer("t/0")
    old, spec = await first.begin()
    await first.prepare(old, spec)
    await first.reports.NoteState(
        trainer_service_pb2.NoteStateRequest(ref=old, step=4, objects=[f"{spec.folder}state/1-4/a.pt"])
    )
    await first.steps(old, 6, eta_seconds=9)
    await first.fail(old, "The device was lost", retryable=True)
    await mesh.training.maintenance.reconcile()
    waiting = await mesh.get(ident)
    assert (waiting["status"], waiting["eta_seconds"], waiting["error_message"]) == ("TRAINING", None, None)
    second = await mesh.trainer("t/1")
    new, again = await second.begin()
    assert (new.attempt, again.resume.step) == (2, 4)
    assert list(again.resume.objects) == [f"{spec.folder}state/1-4/a.pt"]
    assert again.dataset_manifest_path == f"{spec.folder}dataset/1/dataset.json"
    assert again.seed == spec.seed
    assert await refused(first.steps(old, 7)) == "LEASE_LOST"
    assert await refused(first.reports.BeginAttempt(trainer_service_pb2.BeginAttemptRequest(ref=old))) == "LEASE_LOST"
    future = worker_service_pb2.AttemptRef(job_id=ident, attempt=3)
    assert await refused(second.steps(future, 7)) == "LEASE_LOST"
    begin = trainer_service_pb2.BeginAttemptRequest(ref=future)
    assert await refused(second.reports.BeginAttempt(begin)) == "LEASE_LOST", "tasks knows of no such attempt"
    await second.steps(new, 5)
    shown = await mesh.get(ident)
    assert (shown["current_step"], shown["progress"]) == (6, 64), "what was shown stays"
    await mesh.http().post(f"{PATH}{ident}/cancel")
    for call in (
        second.steps(new, 7),
        second.prepare(new, spec),
        second.finish(new, spec),
        second.reports.BeginAttempt(trainer_service_pb2.BeginAttemptRequest(ref=new)),
        second.reports.ReportStage(trainer_service_pb2.ReportStageRequest(ref=new, stage="caching")),
    ):
        assert await refused(call) == "TASK_ENDED"
    nobody = trainer_service_pb2.BeginAttemptRequest(ref=worker_service_pb2.AttemptRef(job_id=str(uuid4()), attempt=1))
    with pytest.raises(MeshError) as missing:
        await second.reports.BeginAttempt(nobody)
    assert missing.value.kind is ErrorKind.NOT_FOUND


async def test_a_trainer_names_objects_of_its_own_training_alone(mesh: Mesh) -> None:
    await mesh.create()
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    for folder in (
        "loras/product/",
        "trainings/x/state/",
        f"{spec.folder}saves/../../x/state/",
        f"{spec.folder}saves/",
    ):
        request = trainer_service_pb2.NoteStateRequest(ref=ref, step=1, objects=[f"{folder}a.pt"])
        assert await refused(trainer.reports.NoteState(request)) == "INVALID"
    save = trainer_service_pb2.NoteSaveRequest(ref=ref, step=1, path="loras/x", size=1, sha256=SHA)
    assert await refused(trainer.reports.NoteSave(save)) == "INVALID"
    sample = trainer_service_pb2.NoteSampleRequest(ref=ref, step=1, path=f"{spec.folder}dataset/x.png")
    assert await refused(trainer.reports.NoteSample(sample)) == "INVALID"
    assert await refused(trainer.steps(ref, 1)) == "NOT_PREPARED"
    caller = mesh.stub(mesh.training.address, mesh.token(scopes=("operator",)), TrainerServiceStub)
    with pytest.raises(MeshError) as foreign:
        await caller.BeginAttempt(trainer_service_pb2.BeginAttemptRequest(ref=ref))
    assert foreign.value.kind is ErrorKind.FORBIDDEN, "trainers alone tell"


async def test_cancel_ends_the_job_keeps_no_file_and_is_refused_after_another_end(mesh: Mesh) -> None:
    client = mesh.http()
    pending, running = (await mesh.create())["id"], (await mesh.create())["id"]
    assert (await client.post(f"{PATH}{pending}/cancel")).json()["status"] == "CANCELLED"
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    assert ref.job_id == running
    await trainer.prepare(ref, spec)
    await mesh.put(f"{spec.folder}saves/1.safetensors", b"x")
    first = await client.post(f"{PATH}{running}/cancel")
    second = await client.post(f"{PATH}{running}/cancel")
    assert [first.status_code, second.status_code] == [200, 200]
    shown = first.json()
    assert (shown["status"], shown["processed_dataset_path"], shown["error_message"]) == ("CANCELLED", None, None)
    assert shown["completed_at"] is not None
    assert second.json() == shown
    heartbeat = worker_service_pb2.HeartbeatRequest(session_id=trainer.session, held=[ref])
    assert [one.job_id for one in (await trainer.workers.Heartbeat(heartbeat)).give_up] == [running]
    await mesh.training.maintenance.sweep()
    assert await mesh.objects("trainings/") == []
    # What a late trainer has still written goes a little later.
    await mesh.put(f"{spec.folder}state/late.pt", b"x")
    await mesh.execute("UPDATE object_sweeps SET due_at = now()")
    await mesh.training.maintenance.sweep()
    assert await mesh.objects("trainings/") == []
    assert await mesh.rows("SELECT FROM object_sweeps") == []
    completed, _ = await mesh.trained()
    late = await client.post(f"{PATH}{completed['id']}/cancel")
    assert (late.status_code, "COMPLETED" in late.text) == (409, True)


async def test_a_training_that_began_by_a_clock_ahead_does_not_end_before_it_began(mesh: Mesh) -> None:
    created = await mesh.create()
    trainer = await mesh.trainer()
    await trainer.begin()
    await mesh.execute("UPDATE trainings SET started_at = started_at + interval '1 hour'")
    ended = (await mesh.http().post(f"{PATH}{created['id']}/cancel")).json()
    assert ended["started_at"] is not None
    assert datetime.fromisoformat(ended["completed_at"]) >= datetime.fromisoformat(ended["started_at"])


async def test_a_failed_training_says_why_and_what_it_has_kept_can_be_continued(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    state = f"{spec.folder}state/1-6/a.pt"
    await trainer.steps(ref, 7)
    await trainer.reports.NoteState(trainer_service_pb2.NoteStateRequest(ref=ref, step=6, objects=[state]))
    await trainer.fail(ref, "The loss is not a number at step 8")
    await mesh.training.maintenance.reconcile()
    failed = await mesh.get(ident)
    assert (failed["status"], failed["error_message"]) == ("FAILED", "The loss is not a number at step 8")
    assert failed["completed_at"] is not None
    assert (await mesh.http().post(f"{PATH}{ident}/cancel")).status_code == 409
    body = {"steps": 5, "learning_rate": 0.00001}
    keyed = {"idempotency-key": "again"}
    answers = [await mesh.http().post(f"{PATH}{ident}/continue", json=body, headers=keyed) for _ in range(2)]
    continued = answers[0].json()
    assert answers[1].json()["id"] == continued["id"] != ident
    assert (continued["status"], continued["learning_rate"], continued["steps"]) == ("PENDING", 0.00001, 5)
    assert (continued["total_steps"], continued["current_step"]) == (12, 6)
    _, going_on = await trainer.begin()
    assert (going_on.resume.step, list(going_on.resume.objects)) == (6, [state])
    assert going_on.dataset_manifest_path == f"{spec.folder}dataset/1/dataset.json"
    assert (await mesh.get(continued["id"]))["status"] == "TRAINING"
    dataset = (await mesh.http().get(f"{PATH}{continued['id']}/dataset")).json()
    assert [one["name"] for one in dataset["images"]] == ["a.png"]
    # What it goes on from is kept while it runs, however old.
    await mesh.execute("UPDATE trainings SET completed_at = now() - interval '1000 days' WHERE id = %s", ident)
    await mesh.training.maintenance.age_out()
    assert await mesh.rows("SELECT FROM trainings WHERE swept_at IS NOT NULL") == []


async def test_a_finished_training_is_continued_from_its_adapter_and_a_running_or_empty_one_is_not(mesh: Mesh) -> None:
    completed, path = await mesh.trained()
    client = mesh.http()
    continued = (await client.post(f"{PATH}{completed['id']}/continue", json={"steps": 3})).json()
    assert continued["total_steps"] == 3
    assert (await client.post(f"{PATH}{continued['id']}/continue", json={"steps": 3})).status_code == 409
    trainer = await mesh.trainer("t/1")
    _, spec = await trainer.begin()
    assert spec.start_from_path == f"loras/{path}"
    await client.post(f"{PATH}{continued['id']}/cancel")
    empty = await client.post(f"{PATH}{continued['id']}/continue", json={"steps": 3})
    assert empty.status_code == 409, "a cancelled training has kept nothing"


async def test_a_job_that_completes_without_an_adapter_is_a_failure(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, _ = await trainer.begin()
    await trainer.complete(ref)
    await mesh.training.maintenance.reconcile()
    shown = await mesh.get(ident)
    assert (shown["status"], shown["error_message"]) == ("FAILED", "The trainer ended without an adapter")


async def test_saves_samples_and_losses_are_kept_shown_and_pruned(mesh: Mesh) -> None:
    ident = (await mesh.create(steps=5000))["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    for number in range(1, 7):
        path = f"{spec.folder}saves/{number}.safetensors"
        await mesh.put(path, b"x")
        await trainer.reports.NoteSave(
            trainer_service_pb2.NoteSaveRequest(ref=ref, step=number, path=path, size=1, sha256=SHA)
        )
    sample = trainer_service_pb2.NoteSampleRequest(
        ref=ref, step=0, index=0, prompt="zorblat", seed=42, path=f"{spec.folder}samples/0-0.png"
    )
    await trainer.reports.NoteSample(sample)
    validation = [
        training_pb2.ValidationPoint(step=step, bucket=bucket, loss=0.5 / step)
        for step in (1, 2500, 5000)
        for bucket in ("0.0-0.5", "0.5-1.0")
    ]
    await trainer.steps(ref, 5000, losses=losses(*range(1, 5001)), validation=validation)
    await trainer.steps(ref, 5000, losses=[training_pb2.LossPoint(step=5000, loss=9.0)])
    client = mesh.http()
    kept = (await client.get(f"{PATH}{ident}/saves")).json()
    assert [one["step"] for one in kept["saves"]] == [3, 4, 5, 6]
    assert [(one["seed"], one["url"].startswith("http://gateway.test/")) for one in kept["samples"]] == [(42, True)]
    await mesh.training.maintenance.sweep()
    assert await mesh.objects(f"{spec.folder}saves/") == [one["path"] for one in kept["saves"]]
    curve = (await client.get(f"{PATH}{ident}/loss")).json()
    assert len(curve["losses"]) == len(curve["smoothed"]) == 1000
    assert [one["step"] for one in curve["losses"]] == list(range(5, 5001, 5))
    assert curve["losses"][-1]["loss"] > 1, "a step that is taken again has its last loss"
    assert len(curve["validation"]) == 6
    svg = await client.get(f"{PATH}{ident}/loss.svg", params={"theme": "dark"})
    assert svg.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in svg.headers["content-security-policy"]
    assert svg.text.startswith("<svg")
    assert "noise 0.5-1.0" in svg.text
    png = await client.get(f"{PATH}{ident}/loss.png")
    assert (png.headers["content-type"], png.content[:8]) == ("image/png", b"\x89PNG\r\n\x1a\n")
    assert (await client.get(f"{PATH}{ident}/loss.png", params={"theme": "pink"})).status_code == 422
    images = (await client.get(f"{PATH}{ident}/dataset")).json()
    [image] = images["images"]
    assert (image["caption"], image["width"], image["mask_path"]) == ("zorblat", 64, None)
    assert image["url"].startswith("http://gateway.test/")
    assert images["rejects"] == [{"name": "b.png", "reason": "is too small"}]


async def test_samples_are_asked_for_and_told_to_the_trainer_once(mesh: Mesh) -> None:
    client = mesh.http()
    bare, own = (await mesh.create())["id"], (await mesh.create(sample_prompts=["a [trigger]"]))["id"]
    refused_one = await client.post(f"{PATH}{bare}/sample", json={})
    assert refused_one.status_code == 422
    await client.post(f"{PATH}{bare}/cancel")
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    assert await trainer.steps(ref, 1) == []
    assert (await client.post(f"{PATH}{own}/sample", json={})).status_code == 200
    assert await trainer.steps(ref, 2) == ["a [trigger]"]
    assert (await client.post(f"{PATH}{own}/sample", json={"prompts": ["zorblat at night"]})).status_code == 200
    assert [await trainer.steps(ref, 3), await trainer.steps(ref, 4)] == [["zorblat at night"], []]
    await client.post(f"{PATH}{own}/cancel")
    assert (await client.post(f"{PATH}{own}/sample", json={})).status_code == 409


async def test_priority_decides_who_is_next_and_a_change_is_shown(mesh: Mesh) -> None:
    first, second = (await mesh.create())["id"], (await mesh.create())["id"]
    changed = (await mesh.http().patch(PATH + second, json={"priority": 7})).json()
    assert (changed["priority"], changed["priority_changed_at"] is not None) == (7, True)
    ref, _ = await (await mesh.trainer()).begin()
    assert ref.job_id == second
    await mesh.http().post(f"{PATH}{first}/cancel")
    assert (await mesh.http().patch(PATH + first, json={"priority": 8})).status_code == 409
    assert (await mesh.http().patch(PATH + first, json={})).status_code == 422


async def test_logs_keep_their_tail_and_say_so(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    for number in range(60):
        await trainer.steps(ref, 1, log_lines=[f"{number} " + "x" * 1990])
    logs = (await mesh.get(ident))["logs"]
    assert len(logs) <= 64 * 1024
    assert logs.startswith("[earlier lines are left out]\n")
    assert logs.splitlines()[-1].startswith("59 x")
    assert logs.count("[earlier") == 1


async def test_webhooks_have_the_documented_members(mesh: Mesh) -> None:
    entity = str(uuid4())
    created = await mesh.create(
        webhook_url="https://example.com/hook", entity_id=entity, origin_zone="eu", origin_version="2"
    )
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    while await mesh.training.maintenance.hand_over():
        pass
    async with mesh.tasks.database.connection() as conn:
        cursor = await conn.execute(
            "SELECT event_type, body, tenant FROM webhook_deliveries ORDER BY entity_version, id"
        )
        rows = [(kind, json.loads(bytes(body)), tenant) for kind, body, tenant in await cursor.fetchall()]
    assert {tenant for _, _, tenant in rows} == {"acme"}
    base = {
        "event_type",
        "task_id",
        "status",
        "timestamp",
        "entity_id",
        "metadata",
        "origin_instance",
        "origin_version",
        "origin_zone",
        "progress",
        "error_message",
        "completed_at",
    }
    trainings = [body for kind, body, _ in rows if kind == "training_status_update"]
    preparations = [body for kind, body, _ in rows if kind == "preprocessing_status_update"]
    assert [one["status"] for one in trainings] == ["PENDING", "PREPROCESSING", "TRAINING"]
    for one in trainings:
        assert set(one) == base | {"current_step", "total_steps", "eta_seconds", "local_model_path"}
    for one in preparations:
        assert set(one) == base | {
            "current_stage",
            "processed_files_count",
            "total_files_count",
            "processed_dataset_path",
        }
    assert (trainings[0]["task_id"], trainings[0]["entity_id"]) == (created["id"], entity)
    assert (trainings[0]["origin_zone"], trainings[0]["origin_version"]) == ("eu", "2")
    assert (preparations[0]["processed_files_count"], preparations[0]["current_stage"]) == (0, None)
    assert preparations[-1]["processed_dataset_path"] == f"{spec.folder}dataset/1"
    assert await mesh.rows("SELECT FROM webhook_handovers") == []


async def test_a_training_is_watched_by_events_that_resume(mesh: Mesh) -> None:
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    seen: list[tuple[int, dict[str, Any]]] = []

    async def follow() -> None:
        async with mesh.http().stream("GET", f"{PATH}{ident}/events") as stream:
            version = 0
            async for line in stream.aiter_lines():
                if line.startswith("id: "):
                    version = int(line[4:])
                if line.startswith("data: "):
                    seen.append((version, json.loads(line[6:])))

    following = asyncio.create_task(follow())

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while len(seen) < count:  # noqa: ASYNC110 -- what is waited for comes over the wire
                await asyncio.sleep(0.02)

    await until(1)
    await trainer.steps(ref, 3, losses=losses(1, 2, 3))
    await until(2)
    await trainer.reports.NoteSample(
        trainer_service_pb2.NoteSampleRequest(ref=ref, step=3, prompt="z", path=f"{spec.folder}samples/3.png")
    )
    await until(3)
    await mesh.http().post(f"{PATH}{ident}/cancel")
    async with asyncio.timeout(60):
        await following
    versions = [version for version, _ in seen]
    assert versions == sorted(set(versions))
    assert [one["step"] for one in seen[1][1]["losses"]] == [1, 2, 3]
    assert [one["step"] for one in seen[2][1]["samples"]] == [3]
    assert seen[-1][1]["training"]["status"] == "CANCELLED"
    assert [one["final"] for _, one in seen] == [False] * (len(seen) - 1) + [True]
    again = await mesh.http().get(f"{PATH}{ident}/events", headers={"last-event-id": str(versions[0])})
    assert again.text.count("event: training") == 1, "only its end is left to tell"


async def test_how_far_a_training_is_comes_live_as_the_training_itself_counts_it(
    start_mesh: StartMesh, nats_url: str
) -> None:
    mesh = await start_mesh(gateway_settings={"nats_url": nats_url})
    ident = (await mesh.create())["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    await trainer.prepare(ref, spec)
    address = f"ws{mesh.gateway.removeprefix('http')}/ws/events?token={mesh.token()}"
    async with connect(address) as client, asyncio.timeout(60):
        await client.send('{"type": "subscribe", "data": {"events": ["job.progress"]}}')
        step = 0
        heard: list[dict[str, Any]] = []
        # Of several steps within a second one is told.
        while len(heard) < 2:
            step = min(step + 1, 9)
            await trainer.steps(ref, step)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while "data" not in (message := json.loads(await client.recv())):
                        pass
                    heard.append(message["data"])
    assert all(one["job_id"] == ident for one in heard)
    assert heard[0]["message"] == "step 1 of 10"
    assert heard[0]["progress"] == 19, "the preparation is a tenth of it"
    assert heard[0]["progress"] < heard[1]["progress"]
