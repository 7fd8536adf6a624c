"""Event streams over real sockets: resumed, kept alive, let go."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from atelier.tasks.v1 import tasks_service_pb2_grpc

from meshkit.auth import TokenVerifier
from meshkit.server import MeshServer
from services.gateway import streams
from services.gateway.config import GatewaySettings
from tests.integration.gateway.conftest import PREVIEW, SECRET, Mesh, StartMesh, until

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
    assert base64.b64decode(seen[0]["data"]["preview"]) == PREVIEW


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
        async with asyncio.timeout(60):
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
        async with asyncio.timeout(60):
            assert [line async for line in lines if line] == []
    await until(lambda: mesh.tasks.watching == 0)


async def test_a_service_that_stays_away_is_an_error_event(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_RESUME_SECONDS", 0.3)
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
    assert json.loads(rest[1].removeprefix("data: "))["status"] == 503


async def test_a_stream_goes_on_when_its_service_is_back(mesh: Mesh) -> None:
    """The service is stopped as by SIGTERM: it does not wait for the stream, and its caller sees no end."""
    mesh.tasks.pause.set()
    client = mesh.client()
    ident = await task(client)
    async with watching(client, ident) as answer:
        lines = answer.aiter_lines()
        seen = ""
        async for line in lines:
            seen += line + "\n"
            if line.startswith("data:"):
                break
        async with asyncio.timeout(60):
            await mesh.server.stop(3600)
        mesh.tasks.pause.clear()
        again = MeshServer(
            GatewaySettings(auth_secret=SECRET),
            listen=mesh.server.address,
            servicers=[(tasks_service_pb2_grpc.add_TasksServiceServicer_to_server, mesh.tasks)],
            verifier=TokenVerifier(secret=SECRET),
        )
        await again.start()
        async with asyncio.timeout(60):
            async for line in lines:
                seen += line + "\n"
        await again.stop(0)
    assert mesh.tasks.after_version == 1
    assert [int(each["id"]) for each in events(seen)] == [1, 2, 3]
    assert [each["event"] for each in events(seen)] == ["task"] * 3


async def test_a_create_that_is_cut_off_is_503(mesh: Mesh) -> None:
    mesh.tasks.hold.clear()
    client = mesh.client()
    creating = asyncio.create_task(client.post("/api/v1/tasks/", json=CREATE))
    async with asyncio.timeout(60):
        await mesh.tasks.held.wait()
    await mesh.server.stop(0)
    answer = await creating
    assert answer.status_code == 503, answer.text
