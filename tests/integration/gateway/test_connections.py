"""Connections that send too much, too slowly or nothing at all: spoken by hand, over sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from meshkit.lifecycle import raise_descriptors
from meshkit.objects import ObjectStore
from tests.conftest import S3Store
from tests.integration.gateway.conftest import IMAGES, Mesh, StartMesh, picture, s3_options, until

KIB = 1024
HEAD = "GET /health/live HTTP/1.1\r\nhost: x\r\n"
CREATE = {"task_type": "GENERATION", "prompt": "a red dress", "origin_instance": "shop"}


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            content = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, content

    async def end(self) -> bytes:
        """What still comes until the gateway closes."""
        async with asyncio.timeout(60):
            return await self.reader.read()


@asynccontextmanager
async def connected(mesh: Mesh) -> AsyncIterator[Line]:
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


def closed(cause: str) -> float:
    return REGISTRY.get_sample_value("atelier_http_connections_closed_total", {"cause": cause}) or 0.0


async def refused(line: Line, status: int, words: str) -> None:
    """The connection is told why, and then ended."""
    found, headers, content = await line.answer()
    assert found == status
    assert words in json.loads(content)["detail"]
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert await line.end() == b""


@pytest.mark.parametrize(
    "head",
    [
        HEAD + "x-large: " + "a" * 65 * KIB + "\r\n\r\n",
        HEAD + "x-many: a\r\n" * 7 * KIB + "\r\n",
        "GET /" + "a" * 65 * KIB + " HTTP/1.1\r\nhost: x\r\n\r\n",
        # These never end.
        HEAD + "x-large: " + "a" * 512 * KIB,
        HEAD + "x-many: a\r\n" * 40 * KIB,
        "GET /" + "a" * 512 * KIB,
    ],
)
async def test_a_head_of_more_than_64_kib_is_a_431(mesh: Mesh, head: str) -> None:
    async with connected(mesh) as line:
        line.send(head)
        await refused(line, 431, "65536 bytes")
    assert (await mesh.client().get("/health/live")).status_code == 200


async def test_a_head_of_less_is_served_in_whatever_pieces_it_comes(mesh: Mesh) -> None:
    async with connected(mesh) as line:
        text = HEAD + "x-large: " + "a" * 60 * KIB + "\r\n\r\n"
        for at in range(0, len(text), 7 * KIB):
            line.send(text[at : at + 7 * KIB])
            await line.writer.drain()
        assert (await line.answer())[0] == 200
        # Pipelined heads are counted one by one.
        line.send(text * 3)
        for _ in range(3):
            assert (await line.answer())[0] == 200


@pytest.mark.parametrize("rest", ["0\r\nx-trailer: ", "0\r\n" + "x: y\r\n" * 20 * KIB, "5;extension="])
async def test_what_surrounds_a_content_in_chunks_is_bounded_too(mesh: Mesh, rest: str) -> None:
    async with connected(mesh) as line:
        line.send(f"POST /api/v1/tasks/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n")
        line.send("transfer-encoding: chunked\r\n\r\n" + "2\r\n{}\r\n" + rest)
        for _ in range(8):
            line.send(b"a" * 64 * KIB)
        await refused(line, 431, "65536 bytes")


async def test_a_head_has_its_time(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(head_read_seconds=1.5)
    async with connected(mesh) as slow, connected(mesh) as silent, connected(mesh) as late, connected(mesh) as breaks:
        slow.send("GET /health/live HTTP/1.1\r\nhos")
        late.send(HEAD + "\r\n")
        breaks.send(HEAD + "\r\n")
        assert (await late.answer())[0] == 200
        late.send("GET /health")
        assert (await breaks.answer())[0] == 200
        breaks.send("\r\n")
        await refused(slow, 408, "head did not arrive within 1.5 seconds")
        await refused(late, 408, "head")
        assert await silent.end() == b""
        assert await breaks.end() == b""


@pytest.mark.parametrize("path", ["/api/v1/tasks/", f"{IMAGES}/a.png"])
async def test_a_content_has_its_time_however_small(start_mesh: StartMesh, s3: S3Store, path: str) -> None:
    mesh: Mesh = await start_mesh(body_read_seconds=1, **s3_options(s3))
    async with connected(mesh) as line:
        line.send(f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n")
        line.send("content-type: image/png\r\ncontent-length: 10\r\n\r\n{")
        await refused(line, 408, "content did not arrive")
    async with connected(mesh) as line:
        # Refused before its content is looked at; the content has no longer for it.
        line.send(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        assert (await line.answer())[0] == 401
        assert await line.end() == b""


async def test_a_connection_at_rest_is_closed_after_its_time(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(idle_connection_seconds=1.5)
    async with connected(mesh) as line:
        for _ in range(2):
            line.send(HEAD + "\r\n")
            assert (await line.answer())[0] == 200
        assert await line.end() == b""


@pytest.mark.parametrize("host", ["", "host: a\r\nhost: b\r\n", "host: a\r\nhost: a\r\n"])
async def test_a_request_has_one_host(mesh: Mesh, host: str) -> None:
    async with connected(mesh) as line:
        line.send(f"GET /health/live HTTP/1.1\r\n{host}\r\n")
        await refused(line, 400, "Host")


async def test_a_refused_request_keeps_the_identifier_that_its_caller_gave_it(mesh: Mesh) -> None:
    async with connected(mesh) as line:
        line.send(HEAD + "x-request-id: mine-1\r\nhost: again\r\n\r\n")
        assert (await line.answer())[1]["x-request-id"] == "mine-1"
    async with connected(mesh) as line:
        line.send(HEAD + "x-request-id: mine-2\r\n\r\n")
        assert (await line.answer())[1]["x-request-id"] == "mine-2"
        line.send("nonsense\r\n\r\n")
        assert (await line.answer())[1]["x-request-id"] != "mine-2", "it is another request's"


async def test_a_request_of_http_1_0_needs_no_host(mesh: Mesh) -> None:
    async with connected(mesh) as line:
        line.send("GET /health/live HTTP/1.0\r\n\r\n")
        assert (await line.answer())[0] == 200


async def test_what_is_no_http_is_a_400(mesh: Mesh) -> None:
    async with connected(mesh) as line:
        line.send("nonsense\r\n\r\n")
        await refused(line, 400, "Invalid HTTP")


async def test_an_answer_under_way_stays_whole_when_the_next_head_is_refused(mesh: Mesh) -> None:
    mesh.tasks.hold.clear()
    content = json.dumps(CREATE)
    async with connected(mesh) as line:
        line.send(f"POST /api/v1/tasks/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n")
        line.send(f"content-length: {len(content)}\r\n\r\n{content}")
        await mesh.tasks.held.wait()
        before = closed("host")
        line.send("GET /health/live HTTP/1.1\r\n\r\n")
        await line.writer.drain()
        await until(lambda: closed("host") > before)
        mesh.tasks.hold.set()
        status, _, answer = await line.answer()
        assert (status, json.loads(answer)["status"]) == (200, "PENDING")
        assert await line.end() == b""


async def test_connections_that_say_nothing_stop_nobody(start_mesh: StartMesh) -> None:
    mesh: Mesh = await start_mesh(max_connections=20)
    lines = [await asyncio.open_connection(*address(mesh)) for _ in range(100)]
    assert (await mesh.client().get("/api/v1/tasks/")).status_code == 200
    async with asyncio.timeout(60):
        gone = [reader for reader, _ in lines[:70]]
        assert [await reader.read() for reader in gone] == [b""] * len(gone)
    for _, writer in lines:
        writer.close()


async def test_1100_idle_connections_stop_nobody(mesh: Mesh) -> None:
    raise_descriptors()
    lines = [await asyncio.open_connection(*address(mesh)) for _ in range(1100)]
    client = mesh.client("globex")
    assert (await client.post("/api/v1/tasks/", json=CREATE)).status_code == 200
    for _, writer in lines:
        writer.close()


@pytest.mark.parametrize("bound", ["max_connections", "max_connections_per_address"])
async def test_a_gateway_whose_connections_all_work_says_so_at_once(start_mesh: StartMesh, bound: str) -> None:
    mesh: Mesh = await start_mesh(**{bound: 2})
    mesh.tasks.hold.clear()
    busy = [asyncio.ensure_future(mesh.client().post("/api/v1/tasks/", json=CREATE)) for _ in range(2)]
    await until(lambda: len(mesh.tasks.requests) == 2)
    async with connected(mesh) as line:
        # Without a word from the caller.
        status, headers, content = await line.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert headers["x-request-id"]
        assert "as many connections" in json.loads(content)["detail"]
        assert await line.end() == b""
    async with httpx.AsyncClient(base_url=mesh.url) as client:
        assert (await client.get("/health/live")).status_code == 503
    mesh.tasks.hold.set()
    assert [(await one).status_code for one in busy] == [200, 200]
    async with connected(mesh) as line:
        line.send(HEAD + "\r\n")
        assert (await line.answer())[0] == 200


async def test_a_peer_that_takes_nothing_of_its_answer_is_let_go(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    mesh: Mesh = await start_mesh(idle_connection_seconds=0.3, **options)
    store = ObjectStore(options["s3_endpoint"], s3.access_key, s3.secret_key, bucket=options["s3_bucket"])
    await store.put("acme", "large.png", picture() + b"\0" * 24 * KIB * KIB, "image/png")
    await store.close()
    before = closed("write")
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(address(mesh))
        peer.sendall(
            f"GET {IMAGES}/large.png HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n\r\n".encode()
        )
        await until(lambda: closed("write") > before)


def address(mesh: Mesh) -> tuple[Any, Any]:
    host, _, port = mesh.url.removeprefix("http://").partition(":")
    return host, int(port)
