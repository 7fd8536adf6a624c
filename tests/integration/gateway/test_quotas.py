"""What the gateway leaves to other tenants when one asks for more than its share."""

import asyncio
import io

from PIL import Image

from tests.conftest import S3Store
from tests.integration.gateway.conftest import IMAGES, StartMesh
from tests.integration.gateway.test_streams import CREATE, task, watching


async def test_a_tenant_that_opens_many_streams_is_refused_and_another_watches(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(tenant_max_streams=2)
    mesh.tasks.pause.set()
    many, other = mesh.client(), mesh.client("other")
    ident, theirs = await task(many), await task(other)
    async with watching(many, ident) as one, watching(many, ident) as two:
        assert (one.status_code, two.status_code) == (200, 200)
        refused = await many.get(f"/api/v1/tasks/{ident}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert "limit of 2 streams" in refused.json()["detail"]
        assert (await many.get(f"/api/v1/tasks/{ident}")).status_code == 200
        async with watching(other, theirs) as stream:
            assert stream.status_code == 200
    async with asyncio.timeout(60):
        while True:
            async with watching(many, ident) as again:
                if again.status_code == 200:
                    break


async def test_a_tenant_that_has_many_requests_under_way_is_refused_and_another_is_served(
    start_mesh: StartMesh,
) -> None:
    mesh = await start_mesh(tenant_max_calls=2)
    mesh.tasks.hold.clear()
    many, other = mesh.client(), mesh.client("other")
    held = [asyncio.ensure_future(many.post("/api/v1/tasks/", json=CREATE)) for _ in range(2)]
    async with asyncio.timeout(60):
        while len(mesh.tasks.requests) < 2:
            mesh.tasks.held.clear()
            await mesh.tasks.held.wait()
    refused = await many.post("/api/v1/tasks/", json=CREATE)
    assert (refused.status_code, "limit of 2 calls" in refused.json()["detail"]) == (429, True)
    assert (await other.get("/api/v1/tasks/")).status_code == 200
    mesh.tasks.hold.set()
    assert [(await answer).status_code for answer in held] == [200, 200]


async def test_a_tenant_that_asks_too_often_is_refused_for_a_second_and_another_is_served(
    start_mesh: StartMesh,
) -> None:
    mesh = await start_mesh(tenant_requests_per_second=1)
    many, other = mesh.client(), mesh.client("other")
    answers = await asyncio.gather(*(many.get("/api/v1/tasks/") for _ in range(12)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert "limit of 1 requests per second" in refused[0].json()["detail"]
    assert (await other.get("/api/v1/tasks/")).status_code == 200


async def test_a_tenant_that_stores_too_much_uploads_no_more_and_another_does(
    start_mesh: StartMesh, s3: S3Store
) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    picture = buffer.getvalue()
    mesh = await start_mesh(
        tenant_storage_bytes=2 * len(picture),
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket=s3.bucket(),
    )
    client, other = mesh.client(), mesh.client("other")

    async def upload(number: int) -> int:
        answer = await client.post(f"{IMAGES}/{number}.png", content=picture)
        return int(answer.status_code)

    assert await upload(0) == 200
    async with asyncio.timeout(60):
        number = 1
        while await upload(number) == 200:
            number += 1
    refused = await client.post(f"{IMAGES}/more.png", content=picture)
    assert refused.status_code == 429
    assert "storage bytes" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert (await other.post(f"{IMAGES}/a.png", content=picture)).status_code == 200
