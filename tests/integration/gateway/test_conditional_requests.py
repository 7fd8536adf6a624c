"""Conditional requests and the names of stored images, against a real object store."""

import asyncio
import io
import random
from collections import Counter
from typing import Any

import httpx
import pytest
from PIL import Image

from meshkit.objects import ObjectStore
from tests.conftest import S3Store
from tests.integration.gateway.conftest import IMAGES, Mesh, StartMesh, picture, s3_options, save

OLD, LATER = "Mon, 04 May 2020 03:02:01 GMT", "Mon, 04 May 2099 03:02:01 GMT"
RED, BLUE = picture(color="red"), picture(color="blue")


async def test_a_write_that_expects_nothing_there_does_not_overwrite(stored: Mesh) -> None:
    client = stored.client()
    first = await client.post(f"{IMAGES}/a.png", content=RED, headers={"if-none-match": "*"})
    assert first.status_code == 200
    assert first.headers["etag"] == (await client.head(f"{IMAGES}/a.png")).headers["etag"]
    second = await client.post(f"{IMAGES}/a.png", content=BLUE, headers={"if-none-match": "*"})
    assert second.status_code == 412
    assert second.json() == {"detail": "The image is not as the request's conditions expect it"}
    assert (await client.get(f"{IMAGES}/a.png")).content == RED


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [{"if-match": '"other"'}, {"if-match": "W/{etag}"}, {"if-none-match": "{etag}"}, {"if-unmodified-since": OLD}],
)
async def test_a_write_that_expects_another_version_leaves_the_image(
    stored: Mesh, method: str, headers: dict[str, str]
) -> None:
    client = stored.client()
    etag = (await client.post(f"{IMAGES}/a.png", content=RED)).headers["etag"]
    given = {name: value.format(etag=etag) for name, value in headers.items()}
    content = BLUE if method == "POST" else None
    assert (await client.request(method, f"{IMAGES}/a.png", content=content, headers=given)).status_code == 412
    assert (await client.get(f"{IMAGES}/a.png")).content == RED


@pytest.mark.parametrize("headers", [{"if-match": "{etag}"}, {"if-match": "*"}, {"if-unmodified-since": LATER}])
async def test_a_write_that_expects_this_version_takes_place(stored: Mesh, headers: dict[str, str]) -> None:
    client = stored.client()
    etag = (await client.post(f"{IMAGES}/a.png", content=RED)).headers["etag"]
    given = {name: value.format(etag=etag) for name, value in headers.items()}
    written = await client.post(f"{IMAGES}/a.png", content=BLUE, headers=given)
    assert written.status_code == 200, written.text
    assert (await client.get(f"{IMAGES}/a.png")).content == BLUE
    last = {"if-match": written.headers["etag"]}
    assert (await client.delete(f"{IMAGES}/a.png", headers=last)).status_code == 200
    assert (await client.delete(f"{IMAGES}/a.png", headers=last)).status_code == 404
    assert (await client.post(f"{IMAGES}/a.png", content=BLUE, headers=last)).status_code == 412


async def test_of_many_writers_at_two_gateways_one_wins(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    clients = [(await start_mesh(**options)).client() for _ in range(2)]
    pictures = [picture(color=(shade, 0, 0)) for shade in range(12)]  # type: ignore[arg-type] # Pillow takes triples

    async def race(headers: dict[str, str]) -> bytes:
        answers = await asyncio.gather(
            *(
                clients[number % 2].post(f"{IMAGES}/raced.png", content=data, headers=headers)
                for number, data in enumerate(pictures)
            )
        )
        found = Counter(answer.status_code for answer in answers)
        assert found == {200: 1, 412: len(pictures) - 1}
        kept: bytes = (await clients[0].get(f"{IMAGES}/raced.png")).content
        assert kept == pictures[[answer.status_code for answer in answers].index(200)]
        return kept

    kept = await race({"if-none-match": "*"})
    pictures.remove(kept)
    await race({"if-match": (await clients[0].head(f"{IMAGES}/raced.png")).headers["etag"]})


async def test_writers_of_a_store_that_compares_nothing_take_turns_in_a_gateway(
    stored: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put_stream

    async def plain(self: ObjectStore, *args: Any, expected: str | None) -> Any:
        return await put(self, *args)

    monkeypatch.setattr(ObjectStore, "put_stream", plain)
    client = stored.client()
    answers = await asyncio.gather(
        *(client.post(f"{IMAGES}/a.png", content=data, headers={"if-none-match": "*"}) for data in (RED, BLUE) * 3)
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 5}


async def test_a_large_image_is_written_on_condition(stored: Mesh) -> None:
    client = stored.client()
    out = io.BytesIO()
    Image.frombytes("RGB", (2600, 2600), random.Random(1).randbytes(2600 * 2600 * 3)).save(out, "BMP")
    data = out.getvalue()
    assert len(data) > 16 * 1024 * 1024, "more than one part"
    first = await client.post(f"{IMAGES}/a.bmp", content=data, headers={"if-none-match": "*"})
    assert first.status_code == 200, first.text
    again = await client.post(f"{IMAGES}/a.bmp", content=data, headers={"if-match": first.headers["etag"]})
    assert again.status_code == 200, again.text
    assert (await client.post(f"{IMAGES}/a.bmp", content=data, headers={"if-none-match": "*"})).status_code == 412


async def test_reads_keep_to_their_conditions(stored: Mesh) -> None:
    client = stored.client()
    url = (await save(client, "a.png", RED))["url"]
    etag = (await client.head(f"{IMAGES}/a.png")).headers["etag"]
    for address in (f"{IMAGES}/a.png", url):
        for method in ("GET", "HEAD"):

            async def status(method: str = method, address: str = address, **headers: str) -> int:
                given = {name.replace("_", "-"): value for name, value in headers.items()}
                return (await client.request(method, address, headers=given)).status_code

            assert await status(if_none_match=etag) == 304
            assert await status(if_none_match="*") == 304
            assert await status(if_none_match='"other"', if_modified_since=LATER) == 200
            assert await status(if_modified_since=LATER) == 304
            assert await status(if_modified_since=OLD) == 200
            assert await status(if_match=etag) == 200
            assert await status(if_match='"other"') == 412
            assert await status(if_unmodified_since=OLD) == 412
            assert await status(if_match=etag, if_unmodified_since=OLD) == 200
    missing = await client.get(f"{IMAGES}/none.png", headers={"if-match": "*"})
    assert missing.status_code == 404


async def test_head_knows_no_ranges(stored: Mesh) -> None:
    client = stored.client()
    await save(client, "a.png", RED)
    for asked in ("bytes=2-4", "bytes=99999-"):
        head = await client.head(f"{IMAGES}/a.png", headers={"range": asked})
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(RED)))
        assert "content-range" not in head.headers


async def spoken(mesh: Mesh, method: str, target: str, content: bytes = b"") -> tuple[int, bytes]:
    """Speak by hand: a client library would encode the address again."""
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n"
        f"authorization: Bearer {mesh.token()}\r\n\r\n".encode()
        + content
    )
    status = int((await reader.readline()).split()[1])
    rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    return status, rest


@pytest.mark.parametrize("name", ["Br%FCcke.png", "a/%E4.png", "%C3.png", "%ED%A0%80.png", "%F8%88%80%80%80.png"])
async def test_a_name_that_is_no_utf_8_is_refused(stored: Mesh, name: str) -> None:
    for method, content in (("POST", RED), ("GET", b""), ("HEAD", b""), ("DELETE", b"")):
        status, rest = await spoken(stored, method, f"{IMAGES}/{name}", content)
        assert status == 422, method
        assert method == "HEAD" or b"UTF-8" in rest
    assert (await stored.client().get(IMAGES)).json()["total"] == 0


@pytest.mark.parametrize(
    "target", ["/api/v1/tasks/%FC", "/api/v1/tasks/?status=%FC", f"{IMAGES}?prefix=%E4", "/nowhere/%FF"]
)
async def test_an_address_that_is_no_utf_8_is_refused_wherever_it_leads(stored: Mesh, target: str) -> None:
    assert (await spoken(stored, "GET", target))[0] == 422


async def test_names_of_any_script_stay_apart(stored: Mesh) -> None:
    client = stored.client()
    names = {"Brücke.png": RED, "Bräcke.png": BLUE, "日本/橋.png": RED, "a\N{REPLACEMENT CHARACTER}.png": BLUE}
    for name, data in names.items():
        await save(client, name, data)
    for name, data in names.items():
        assert (await client.get(f"{IMAGES}/{name}")).content == data
    assert (await client.get(IMAGES)).json()["total"] == len(names)


async def test_a_long_part_of_a_path_is_refused_and_one_that_fits_is_found(stored: Mesh) -> None:
    client: httpx.AsyncClient = stored.client()
    for name in ("n" * 256, "é" * 128, f"a/{'n' * 300}/b.png"):
        for method in ("POST", "GET", "DELETE"):
            answer = await client.request(method, f"{IMAGES}/{name}", content=RED if method == "POST" else None)
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["path", "path"]
            assert "255 bytes" in answer.json()["detail"][0]["msg"]
    for name in ("n" * 255, "é" * 127, "/".join(["k" * 49] * 20)):
        await save(client, name, RED)
        assert (await client.get(f"{IMAGES}/{name}")).content == RED
