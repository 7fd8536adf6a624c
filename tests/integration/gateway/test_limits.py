"""Bodies that are too large, files that are staged, callers that leave."""

import asyncio
import base64
import io
import json
import random
import threading
import zlib
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from PIL import Image

from meshkit.errors import invalid
from meshkit.objects import ObjectStore
from meshkit.transcoding.elements import has_more_elements
from services.gateway import endpoints
from tests.conftest import S3Store
from tests.integration.gateway.conftest import Mesh, StartMesh, s3_options
from tests.webp import animated_webp, solid_webp

CREATE: dict[str, Any] = {"task_type": "GENERATION", "prompt": "a red dress", "origin_instance": "shop"}
EDIT: dict[str, Any] = {
    "task_type": "EDITING",
    "prompt": "a red dress",
    "origin_instance": "shop",
    "base_image": "https://example.com/a.png",
}
MIB = 1024 * 1024


def noise(side: int = 400) -> bytes:
    """A PNG that does not compress."""
    out = io.BytesIO()
    pixels = random.Random(1).randbytes(side * side * 3)
    Image.frombytes("RGB", (side, side), pixels).save(out, "PNG")
    return out.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 black pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (50_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 4 * MIB)) + chunk(b"IEND", b"")


async def in_pieces(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // MIB):
        yield b" " * MIB


async def test_a_body_of_60_mb_is_a_413_that_says_so(mesh: Mesh) -> None:
    client = mesh.client()
    for content in (b" " * (60 * MIB), in_pieces(60 * MIB)):
        answer = await client.post("/api/v1/tasks/", content=content)
        assert answer.status_code == 413
        assert answer.json() == {"detail": f"The request's content is larger than the {32 * MIB} bytes that are taken"}
    assert not mesh.tasks.requests
    assert (await client.get("/api/v1/tasks/")).status_code == 200, "the gateway goes on"


async def test_a_caller_that_waits_for_100_continue_need_not_send(mesh: Mesh) -> None:
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/tasks/ HTTP/1.1\r\nhost: x\r\ncontent-length: {60 * MIB}\r\n"
    writer.write(f"{head}expect: 100-continue\r\n\r\n".encode())
    async with asyncio.timeout(60):
        assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_caller_that_leaves_in_the_middle_of_a_body_leaves_nothing(mesh: Mesh) -> None:
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /api/v1/tasks/ HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nauthorization: Bearer {mesh.token()}\r\n"
    )
    writer.write(head.encode() + b'\r\n{"task_type": ')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await mesh.client().get("/api/v1/tasks/")).json() == []
    assert len(mesh.tasks.requests) == 1


async def test_a_large_image_in_json_is_staged_and_named_in_its_place(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    data = noise()
    assert len(data) > 256 * 1024
    for prefix in ("", "data:image/png;base64,"):
        text = prefix + base64.b64encode(data).decode()
        answer = await mesh.client().post("/api/v1/tasks/", json=CREATE | {"reference_image_data": text})
        assert answer.status_code == 200, answer.text
        staged = mesh.tasks.requests[-1].task.generation.reference_image_data
        assert staged.startswith("staging:staging/")
        store = ObjectStore(options["s3_endpoint"], s3.access_key, s3.secret_key, bucket=options["s3_bucket"])
        assert await store.get("acme", staged.removeprefix("staging:")) == data
        info = await store.stat("acme", staged.removeprefix("staging:"))
        assert info is not None
        assert info.content_type == "image/png"
        await store.close()
    assert (await mesh.client().get("/api/v1/storage/images")).json()["total"] == 0, "staging is not listed"


async def test_large_images_of_a_list_are_staged_one_by_one(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    small, large = encoded(noise(20)), encoded(noise())
    references = [small, large, "https://example.com/a.png", f"data:image/png;base64,{large}"]
    answer = await mesh.client().post("/api/v1/tasks/", json=EDIT | {"reference_images": references})
    assert answer.status_code == 200, answer.text
    sent = list(mesh.tasks.requests[-1].task.editing.reference_images)
    assert [sent[0], sent[2]] == [references[0], references[2]]
    staged = [one.removeprefix("staging:") for one in (sent[1], sent[3])]
    assert len(set(staged)) == 2
    store = ObjectStore(options["s3_endpoint"], s3.access_key, s3.secret_key, bucket=options["s3_bucket"])
    assert [await store.get("acme", path) for path in staged] == [noise(), noise()]
    await store.close()


async def test_large_item_of_a_list_that_is_no_image_is_named(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    references = [encoded(noise()), encoded(noise()), "!" * 300_000]
    answer = await mesh.client().post("/api/v1/tasks/", json=EDIT | {"reference_images": references})
    assert answer.status_code == 422
    assert [one["loc"] for one in answer.json()["detail"]] == [["body", "reference_images", 2]]
    await _nothing_stored(options, s3)
    assert not mesh.tasks.requests


async def test_item_of_a_list_that_the_service_refuses_is_named(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    mesh.tasks.refusal = invalid("task.editing.reference_images[2]", "There is no object", "unknown_object")
    references = [encoded(noise()), encoded(noise(20)), "none.png"]
    answer = await mesh.client().post("/api/v1/tasks/", json=EDIT | {"reference_images": references})
    assert answer.status_code == 422
    assert [one["loc"] for one in answer.json()["detail"]] == [["body", "reference_images", 2]]
    await _nothing_stored(options, s3)


async def test_a_small_image_goes_through_as_it_came(stored: Mesh) -> None:
    text = base64.b64encode(noise(20)).decode()
    await stored.client().post("/api/v1/tasks/", json=CREATE | {"reference_image_data": text})
    assert stored.tasks.requests[-1].task.generation.reference_image_data == text


async def test_a_repeated_create_reads_alike_under_its_key(stored: Mesh) -> None:
    body = CREATE | {"reference_image_data": base64.b64encode(noise()).decode()}
    for _ in range(2):
        await stored.client().post("/api/v1/tasks/", json=body, headers={"idempotency-key": "k"})
    assert stored.tasks.requests[0] == stored.tasks.requests[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!" * 300_000, "base64"),
        (base64.b64encode(b"x" * 300_000).decode(), "image"),
        (base64.b64encode(noise()[:-100_000]).decode(), "damaged"),
        (base64.b64encode(bomb() + b"\0" * 300_000).decode(), "pixels"),
    ],
)
async def test_a_large_file_that_is_no_image_is_refused_and_leaves_nothing(
    start_mesh: StartMesh, s3: S3Store, text: str, reason: str
) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    answer = await mesh.client().post("/api/v1/tasks/", json=CREATE | {"reference_image_data": text})
    assert answer.status_code == 422
    detail = answer.json()["detail"][0]
    assert detail["loc"] == ["body", "reference_image_data"]
    assert reason in detail["msg"]
    await _nothing_stored(options, s3)
    assert not mesh.tasks.requests


async def test_a_request_that_is_refused_otherwise_stages_nothing(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    text = base64.b64encode(noise()).decode()
    body = CREATE | {"reference_image_data": text, "width": 3}
    answer = await mesh.client().post("/api/v1/tasks/", json=body)
    assert answer.json()["detail"][0]["loc"] == ["body", "width"]
    await _nothing_stored(options, s3)


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
async def test_a_create_that_the_service_refuses_leaves_no_upload(
    start_mesh: StartMesh, s3: S3Store, headers: dict[str, str]
) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    mesh.tasks.refusal = invalid("task.generation.subject_model_path", "Unknown LoRA", "unknown_lora")
    body = CREATE | {"reference_image_data": base64.b64encode(noise()).decode()}
    answer = await mesh.client().post("/api/v1/tasks/", json=body, headers=headers)
    assert answer.status_code == 422
    assert mesh.tasks.requests[-1].task.generation.reference_image_data.startswith("staging:staging/")
    await _nothing_stored(options, s3)


async def test_a_replayed_create_leaves_no_upload_of_its_own(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(**options)
    body = CREATE | {"reference_image_data": base64.b64encode(noise()).decode()}
    for replayed in (False, True):
        answer = await mesh.client().post("/api/v1/tasks/", json=body, headers={"idempotency-key": "k"})
        assert answer.status_code == 200
        assert ("idempotent-replayed" in answer.headers) is replayed
    assert mesh.tasks.requests[0] == mesh.tasks.requests[1]
    await _nothing_stored(options, s3)


async def test_large_bodies_wait_for_each_other(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(max_bodies_bytes=100_000, body_wait_seconds=2)
    client = mesh.client()
    body = CREATE | {"prompt": "x" * 900, "config": {"note": "y" * 90_000}}
    mesh.tasks.hold.clear()
    first = asyncio.create_task(client.post("/api/v1/tasks/", json=body))
    await mesh.tasks.held.wait()
    late = await client.post("/api/v1/tasks/", json=body)
    assert late.status_code == 503
    assert late.headers["retry-after"]
    assert (await client.get("/api/v1/tasks/")).status_code == 200, "small requests pass"
    mesh.tasks.hold.set()
    assert (await first).status_code == 200
    assert (await client.post("/api/v1/tasks/", json=body)).status_code == 200


async def test_a_body_of_too_many_members_is_refused_before_it_is_parsed(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(max_body_elements=50_000)
    many = b'{"prompt":"a","config":{' + b'"k":1,' * 100_000
    answer = await mesh.client().post("/api/v1/tasks/", content=many + b"and here it is no JSON any more")
    assert answer.status_code == 422
    [detail] = answer.json()["detail"]
    assert (detail["loc"], detail["type"]) == (["body"], "too_long")
    assert "50000" in detail["msg"]
    text = CREATE | {"prompt": "a", "config": {"note": '","{[' * 20_000}}
    assert (await mesh.client().post("/api/v1/tasks/", json=text)).status_code == 200, "text holds no members"


async def test_others_are_answered_while_a_large_body_is_counted(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh: Mesh = await start_mesh()
    counting, go_on = threading.Event(), threading.Event()

    def count(content: bytes, most: int) -> bool:
        counting.set()
        assert go_on.wait(120)
        return has_more_elements(content, most)

    monkeypatch.setattr(endpoints, "has_more_elements", count)
    many = json.dumps(CREATE | {"config": {f"k{number}": 1 for number in range(300_000)}})
    greedy = asyncio.create_task(mesh.client().post("/api/v1/tasks/", content=many))
    assert await asyncio.to_thread(counting.wait, 60)
    assert (await mesh.client("other").post("/api/v1/tasks/", json=CREATE)).status_code == 200
    assert not greedy.done()
    go_on.set()
    assert (await greedy).status_code == 422


async def test_a_large_body_that_does_not_arrive_is_a_408(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(body_read_seconds=0.2)
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/tasks/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n"
    writer.write(f"{head}content-length: 100000\r\n\r\n{{".encode())
    async with asyncio.timeout(60):
        assert b" 408 " in await reader.readline()
        assert b"connection: close" in await reader.read(), "the rest is not taken for the next request"
    writer.close()


async def _nothing_stored(options: dict[str, Any], s3: S3Store) -> None:
    store = ObjectStore(options["s3_endpoint"], s3.access_key, s3.secret_key, bucket=options["s3_bucket"])
    assert await store.list("acme") == []
    await store.close()


async def test_a_bomb_is_not_stored(stored: Mesh) -> None:
    answer = await stored.client().post("/api/v1/storage/images/a.png", content=bomb())
    assert answer.status_code == 422
    assert "pixels" in answer.json()["detail"][0]["msg"]


async def test_a_service_that_takes_no_more_calls_is_a_429_that_says_when_to_come_again(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(max_concurrent_calls=2)
    mesh.tasks.hold.clear()
    client = mesh.client()
    created = [asyncio.ensure_future(client.post("/api/v1/tasks/", json=CREATE)) for _ in range(2)]
    async with asyncio.timeout(60):
        while len(mesh.tasks.requests) < 2:
            mesh.tasks.held.clear()
            await mesh.tasks.held.wait()
    refused = await client.post("/api/v1/tasks/", json=CREATE)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json() == {"detail": "The service takes no more calls right now"}
    mesh.tasks.hold.set()
    assert [(await answer).status_code for answer in created] == [200, 200]
    assert (await client.post("/api/v1/tasks/", json=CREATE)).status_code == 200
    task = (await created[0]).json()["id"]
    mesh.tasks.pause.set()
    async with client.stream("GET", f"/api/v1/tasks/{task}/events") as first:
        assert first.status_code == 200
        second = await client.get(f"/api/v1/tasks/{task}/events")
        assert second.status_code == 429, "one of two calls may be a stream"
        assert (await client.get(f"/api/v1/tasks/{task}")).status_code == 200


async def test_large_pictures_of_one_tenant_keep_nobody_elses_waiting(stored: Mesh) -> None:
    client, other = stored.client(), stored.client(tenant="other")
    large, tiny = solid_webp(8000, 8000), noise(2)
    assert (await other.post("/api/v1/storage/images/first.png", content=tiny)).status_code == 200
    own = psutil.Process()
    before, most = own.memory_info().rss, 0
    saving = [
        asyncio.ensure_future(client.post(f"/api/v1/storage/images/{number}.webp", content=large, timeout=120))
        for number in range(4)
    ]
    saved = 0
    while not all(one.done() for one in saving):
        answer = await other.post(f"/api/v1/storage/images/{saved}.png", content=tiny)
        assert answer.status_code == 200
        saved += 1
        most = max(most, own.memory_info().rss)
    assert saved > len(saving)
    assert most - before < 100 * MIB
    assert [(await one).status_code for one in saving] == [200] * len(saving)


async def test_an_animation_of_large_frames_is_not_stored(stored: Mesh) -> None:
    answer = await stored.client().post("/api/v1/storage/images/a.webp", content=animated_webp(8000, 8000, 4))
    assert answer.status_code == 422
    assert "pixels in all" in answer.json()["detail"][0]["msg"]
