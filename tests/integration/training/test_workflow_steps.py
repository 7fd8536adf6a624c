"""A step of a workflow trains, and the next one generates with its adapter."""

import asyncio
import base64
import io
import random
from typing import Any

from PIL import Image

from tests.integration.training.conftest import LORA, Mesh, StartMesh, data_url

WORKFLOWS = "/api/v1/workflows/"


def definition(**training: Any) -> dict[str, Any]:
    config = {"trigger_word": "zorblat", "source_images": ["a.png"], "steps": 10, "base_model_path": "garments"}
    return {
        "name": "learn and draw",
        "origin_instance": "tests",
        "steps": [
            {"id": "learn", "job_kind": "TRAINING", "config": config | training},
            {
                "id": "draw",
                "task_type": "GENERATION",
                "depends_on": ["learn"],
                "config": {"prompt": "a zorblat shoe", "width": 64, "height": 64},
                "input_mappings": [
                    {"from_step": "learn", "from_field": "local_model_path", "to_field": "product_model_path"}
                ],
            },
        ],
    }


def noise(side: int) -> bytes:
    """Return a PNG that does not compress."""
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(side).randbytes(side * side * 3)).save(out, "PNG")
    return out.getvalue()


async def until(mesh: Mesh, workflow: str, step: int, state: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            shown: dict[str, Any] = (await mesh.http().get(WORKFLOWS + workflow)).json()
            if shown["steps"][step]["status"] == state:
                return shown
            await asyncio.sleep(0.05)
            await mesh.training.relay.loop.run_once()


async def test_a_step_trains_and_the_next_one_is_given_its_adapter(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(workflows=True)
    await mesh.put("a.png", b"x")
    client = mesh.http()
    made = await client.post(WORKFLOWS, json=definition())
    assert made.status_code == 200, made.text
    workflow = made.json()["id"]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    shown = await until(mesh, workflow, 0, "RUNNING")
    assert (shown["steps"][0]["task_id"], shown["steps"][0]["task_type"]) == (ref.job_id, "TRAINING")
    await trainer.prepare(ref, spec)
    await mesh.put(f"{spec.folder}saves/last.safetensors", LORA)
    path = await trainer.finish(ref, spec)
    await trainer.complete(ref)
    await mesh.training.maintenance.reconcile()
    shown = await until(mesh, workflow, 1, "RUNNING")
    learned = shown["steps"][0]
    assert (learned["status"], learned["result"]["local_model_path"]) == ("COMPLETED", path)
    assert "logs" not in learned["result"]
    task = (await client.get(f"/api/v1/tasks/{shown['steps'][1]['task_id']}")).json()
    assert (task["task_type"], task["product_model_path"]) == ("GENERATION", path)


async def test_a_cancelled_workflow_cancels_its_training_and_a_failed_one_fails_it(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(workflows=True)
    await mesh.put("a.png", b"x")
    client = mesh.http()
    first = (await client.post(WORKFLOWS, json=definition())).json()["id"]
    trainer = await mesh.trainer()
    ref, _ = await trainer.begin()
    await client.delete(WORKFLOWS + first)
    async with asyncio.timeout(60):
        while (await mesh.get(ref.job_id))["status"] != "CANCELLED":  # noqa: ASYNC110 -- what is waited for lies elsewhere
            await asyncio.sleep(0.05)
    steps = definition()
    steps["steps"][0]["max_retries"] = 0
    second = (await client.post(WORKFLOWS, json=steps)).json()["id"]
    failing = await mesh.trainer("t/1")
    ref, _ = await failing.begin()
    await failing.fail(ref, "The device has no room")
    await mesh.training.maintenance.reconcile()
    shown = await until(mesh, second, 0, "FAILED")
    assert (shown["status"], shown["steps"][0]["error_message"]) == ("FAILED", "The device has no room")


async def test_images_inside_of_a_step_that_trains_are_taken_as_a_training_takes_them(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(workflows=True, trained_models=("garments",))
    await mesh.put("a.png", b"x")
    client = mesh.http()
    large = base64.b64encode(noise(900)).decode()
    assert len(large) > 2_000_000
    given = [data_url(), "a.png", large, "https://example.com/b.png"]
    made = await client.post(WORKFLOWS, json=definition(source_images=given))
    assert made.status_code == 200, made.text
    folder = f"workflows/{made.json()['id']}"
    kept = [f"{folder}/0-source_images-0.png", "a.png", f"{folder}/0-source_images-2.png", given[3]]
    assert made.json()["steps"][0]["config"]["source_images"] == kept
    assert sorted(path for path in await mesh.objects() if path != "a.png") == [kept[0], kept[2]]
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()
    assert list(spec.training.source_images) == kept
    assert (await mesh.get(ref.job_id))["source_images"] == kept
    for wrong in ("data:image/png;base64,AAAA", "A" * 4000):
        answer = await client.post(WORKFLOWS, json=definition(source_images=["a.png", wrong]))
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"][0]["loc"] == ["body", "steps", 0, "config", "source_images", 1]
    shared = definition() | {"config": {"source_images": [data_url()]}}
    assert (await client.post(WORKFLOWS, json=shared)).status_code == 422


async def test_a_step_that_trains_is_checked_as_a_training_is(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(workflows=True)
    client = mesh.http()
    cases: list[tuple[dict[str, Any], dict[str, Any], list[Any]]] = [
        ({"rank": 0}, {}, ["config", "rank"]),
        ({"source_images": []}, {}, ["config", "source_images"]),
        ({"shoes": 1}, {}, ["config", "shoes"]),
        ({}, {"task_type": "GENERATION"}, ["task_type"]),
        ({}, {"job_kind": None}, ["task_type"]),
        ({}, {"active_provider_capabilities": ["LORA"]}, ["active_provider_capabilities"]),
    ]
    for config, members, where in cases:
        body = definition(**config)
        body["steps"][0] |= members
        answer = await client.post(WORKFLOWS, json=body)
        assert answer.status_code == 422, (config, members, answer.text)
        assert ["body", "steps", 0, *where] in [one["loc"] for one in answer.json()["detail"]], answer.text
    body = definition()
    body["steps"][1]["input_mappings"][0]["from_field"] = "no_such_member"
    assert (await client.post(WORKFLOWS, json=body)).status_code == 422
