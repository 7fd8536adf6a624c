"""Pictures through the mesh: one, several at once, and batches of an exact size."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import httpx
from PIL import Image

from bench.gpu.setting import PartError, RunningMesh
from bench.picture import MeshPicture, through_mesh
from meshkit.objects import ObjectStore

Body = dict[str, object]

_TIMEOUT_SECONDS = 300
_MOST_BLOCKERS = 8
_AHEAD = timedelta(milliseconds=100)
_TENANT = "default"


def body(prompt: str, *, side: int, steps: int, seed: int, model: str | None = None, lora: str | None = None) -> Body:
    """Return a create of one picture."""
    config: dict[str, object] = {"steps": steps}
    if model is not None:
        config["model"] = model
    created: Body = {
        "task_type": "GENERATION",
        "origin_instance": "bench",
        "prompt": prompt,
        "width": side,
        "height": side,
        "seed": seed,
        "config": config,
    }
    if lora is not None:
        created["style_model_path"] = lora
    return created


def make(mesh: RunningMesh, bodies: Sequence[Body]) -> list[MeshPicture]:
    """Create all of these at once and wait for them."""

    async def make_all() -> list[MeshPicture]:
        async with _client() as client:
            return await asyncio.gather(*(through_mesh(client, mesh.stack, each) for each in bodies))

    return asyncio.run(make_all())


def read(mesh: RunningMesh, picture: MeshPicture) -> Image.Image:
    """Fetch a picture from storage."""
    address = mesh.stack.url.removesuffix("tasks/") + f"storage/images/{picture.task['result_image_path']}"
    answer = httpx.get(address, headers=mesh.stack.headers, timeout=_TIMEOUT_SECONDS)
    answer.raise_for_status()
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def put_lora(mesh: RunningMesh, path: str, file: Path) -> None:
    """Put a file into the library of LoRAs, where tasks find it by its path."""

    async def put() -> None:
        store = ObjectStore(mesh.s3_endpoint, mesh.s3_access_key, mesh.s3_secret_key)
        try:
            await store.put(_TENANT, f"loras/{path}", file)
        finally:
            await store.close()

    asyncio.run(put())


def seconds_of_batches(mesh: RunningMesh, batches: Sequence[Sequence[Body]], blocker: Body) -> float:
    """Return the seconds in which the worker makes these batches, each as one.

    The pictures wait in the worker behind a blocker that holds the device, so that each batch is complete when its turn
    comes. The time runs from the blocker's completion to the last picture's. Where the blocker ended before the worker
    had all pictures, it is tried again with more blockers.

    Args:
        mesh: The mesh.
        batches: Pictures of each batch; each batch has a `guidance_scale` of its own, so that no two join.
        blocker: A picture of many steps.

    Raises:
        PartError: The pictures did not get to the worker in time with the most blockers.
    """
    blockers = 1
    while blockers <= _MOST_BLOCKERS:
        seconds = asyncio.run(_behind(mesh, batches, [_guided(blocker, number) for number in range(blockers)]))
        if seconds is not None:
            return seconds
        blockers *= 2
    raise PartError("The batches did not get to the worker while a picture before them held the device.")


async def _behind(mesh: RunningMesh, batches: Sequence[Sequence[Body]], blockers: Sequence[Body]) -> float | None:
    async with _client() as client, asyncio.TaskGroup() as group:
        before = [group.create_task(through_mesh(client, mesh.stack, each)) for each in blockers]
        await asyncio.sleep(0.05)  # they are created first, and so leased first
        queued = [group.create_task(through_mesh(client, mesh.stack, each)) for batch in batches for each in batch]
    free_at = max(_moment(each.result(), "completed_at") for each in before)
    # Leased is not yet ready to run, and the blocker's completion is stored a little after the device is free.
    if max(_moment(each.result(), "started_at") for each in queued) + _AHEAD >= free_at:
        return None
    return (max(_moment(each.result(), "completed_at") for each in queued) - free_at).total_seconds()


def _guided(each: Body, number: int) -> Body:
    """Return a create that shares no batch with one of another number; its picture is only timed."""
    config = each["config"]
    assert isinstance(config, dict)
    return {**each, "config": {**config, "guidance_scale": 3.0 + number / 1000}}


def in_batches(pictures: Sequence[Body], size: int) -> list[list[Body]]:
    """Split pictures into batches of a size, which the worker will not join."""
    return [
        [_guided(each, 100 + start) for each in pictures[start : start + size]]
        for start in range(0, len(pictures), size)
    ]


def _moment(picture: MeshPicture, field: str) -> datetime:
    return datetime.fromisoformat(picture.task[field])


def _client() -> httpx.AsyncClient:
    # Each picture has a stream of events of its own.
    return httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, limits=httpx.Limits(max_connections=256))
