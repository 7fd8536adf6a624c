"""Event streams over real sockets: resumed, kept alive, let go."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.integration.gateway.conftest import Mesh, StartMesh, until

CREATE = {"task_type": "GENERATION", "prompt": "a red dress", "origin_instance": "shop"}


async def task(client: httpx.AsyncClient) -> str:
    return str((await client.post("/api/v1/tasks/", json=CREATE)).json()["id"])


@asynccontextmanager
async def watching(client: httpx.AsyncClient, ident: str, **headers: str) -> AsyncIterator[httpx.Response]:
    async with client.stream("GET", f"/api/v1/tasks/{ident}/events", headers=headers) as answer:
        yield answer


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


async def test_a_stream_shows_every_version_and_ends(mesh: Mesh) -> None:
    client = mesh.client()
    async with watching(client, await task(client)) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        await answer.aread()
    seen = events(answer.text)
    assert [one["id"] for one in seen] == ["1", "2", "3"]
    assert {one["event"] for one in seen} == {"task"}
    assert seen[-1]["data"]["final"] is True
    assert seen[0]["data"]["task"]["prompt"] == "a red dress"
    assert base64.b64decode(seen[0]["data"]["preview"]) == b"\xff\xd8preview"


async def test_a_stream_goes_on_after_the_last_event_seen(mesh: Mesh) -> None:
    client = mesh.client()
    ident = await task(client)
    async with watching(client, ident, **{"last-event-id": "2"}) as answer:
        await answer.aread()
    assert [one["id"] for one in events(answer.text)] == ["3"]
    answer = await client.get(f"/api/v1/tasks/{ident}/events", params={"after_version": 1})
    assert [one["id"] for one in events(answer.text)] == ["2", "3"]
    answer = await client.get(f"/api/v1/tasks/{ident}/events", headers={"last-event-id": "nonsense"})
    assert len(events(answer.text)) == 3


async def test_a_refused_stream_is_an_ordinary_error(mesh: Mesh) -> None:
    client = mesh.client()
    absent = await client.get("/api/v1/tasks/00000000-0000-4000-8000-000000000000/events")
    assert (absent.status_code, absent.headers["content-type"]) == (404, "application/json")
    assert (await client.get("/api/v1/tasks/x/events")).status_code == 422
    assert (await mesh.client(scopes=("write",)).get("/api/v1/tasks/x/events")).status_code == 403


async def test_a_silent_stream_is_kept_alive(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(keep_alive_seconds=0.05)
    mesh.tasks.pause.set()
    client = mesh.client()
    async with watching(client, await task(client)) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(10):
            kept = [line async for line in _until(lines, ": keep-alive", 3)]
    assert kept.count(": keep-alive") == 3


async def _until(lines: AsyncIterator[str], wanted: str, times: int) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        times -= line == wanted
        if not times:
            return


async def test_a_caller_who_leaves_ends_the_call_behind(mesh: Mesh) -> None:
    mesh.tasks.pause.set()
    client = mesh.client()
    async with watching(client, await task(client)) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                break
        assert mesh.tasks.watching == 1
    await until(lambda: mesh.tasks.watching == 0)


async def test_a_stopping_gateway_lets_its_streams_go(mesh: Mesh) -> None:
    mesh.tasks.pause.set()
    client = mesh.client()
    async with watching(client, await task(client)) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                break
        mesh.stopping.set()
        async with asyncio.timeout(5):
            assert [line async for line in lines if line] == []
    await until(lambda: mesh.tasks.watching == 0)


async def test_a_service_that_dies_in_a_stream_is_an_error_event(mesh: Mesh) -> None:
    mesh.tasks.pause.set()
    client = mesh.client()
    async with watching(client, await task(client)) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                break
        await mesh.server.stop(0)
        rest = [line async for line in lines if line]
    assert rest[0] == "event: error"
    assert json.loads(rest[1].removeprefix("data: "))["status"] in {503, 409}
