"""Large LoRA files through the gateway, in a process of its own: its memory does not grow with them."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import S3Store
from tests.integration.training.conftest import SECRET, Mesh, StartMesh
from tests.integration.training.test_lora_library import UPLOAD

MIB = 1024 * 1024
MOST_GROWTH = 20 * MIB


@asynccontextmanager
async def gateway_process(mesh: Mesh, s3: S3Store, bucket: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "ATELIER_LISTEN": address,
        "ATELIER_AUTH_SECRET": SECRET,
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": bucket,
        "ATELIER_TASKS_ADDRESS": mesh.tasks.address,
        "ATELIER_TRAINING_ADDRESS": mesh.training.address,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.gateway"),
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}") as client, asyncio.timeout(60):
            while not await _answers(client):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.1)
        yield f"http://{address}", psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/live")).status_code == 200
    except httpx.TransportError:
        return False


async def _form(size: int) -> AsyncIterator[bytes]:
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
    piece = b"x" * MIB
    for _ in range(size // MIB):
        yield piece
    yield b"\r\n--b--\r\n"


async def _growth(start_mesh: StartMesh, s3: S3Store, size: int) -> int:
    bucket = s3.bucket()
    mesh = await start_mesh(s3_bucket=bucket)
    async with gateway_process(mesh, s3, bucket) as (url, process):
        headers = {"authorization": f"Bearer {mesh.token()}", "content-type": "multipart/form-data; boundary=b"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as client:

            async def upload(of: int) -> None:
                answer = await client.post(UPLOAD, content=_form(of))
                # It went all the way: the library judged it.
                assert answer.status_code == 422, answer.text
                assert "safetensors" in answer.text

            await upload(6 * MIB)
            before = most = process.memory_info().rss
            sending: asyncio.Task[Any] = asyncio.ensure_future(upload(size))
            while not sending.done():
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.02)
            await sending
    assert await mesh.objects("staging") == []
    return most - before


async def test_an_upload_of_128_mib_costs_the_gateway_20_mib_at_most(start_mesh: StartMesh, s3: S3Store) -> None:
    assert await _growth(start_mesh, s3, 128 * MIB) <= MOST_GROWTH


@pytest.mark.long
async def test_an_upload_of_500_mib_costs_the_gateway_20_mib_at_most(start_mesh: StartMesh, s3: S3Store) -> None:
    assert await _growth(start_mesh, s3, 500 * MIB) <= MOST_GROWTH
