"""Pages that open live events: a browser sends whatever token a page has, and the gateway looks whose page it is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.integration.gateway.conftest import Mesh, StartMesh
from tests.integration.gateway.live import address

_PAGE = b"<!doctype html><title>a page</title>"
# What becomes of a connection: it opens and answers a ping, or it ends before.
_CONNECT = """
url => new Promise(resolve => {
  const socket = new WebSocket(url);
  socket.onopen = () => socket.send('{"type": "ping"}');
  socket.onmessage = message => { resolve(['message', message.data]); socket.close(); };
  socket.onclose = closed => resolve(['closed', closed.code]);
})
"""


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """A site of its own, with one page."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(_PAGE)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + _PAGE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


async def connected(browser: Browser, page_url: str, mesh: Mesh) -> list[Any]:
    """Open a page and have its script connect; return what becomes of it."""
    page = await browser.new_page()
    await page.goto(page_url)
    async with asyncio.timeout(60):
        found: list[Any] = await page.evaluate(_CONNECT, address(mesh, token=mesh.token()))
    await page.close()
    return found


async def test_a_page_of_another_origin_is_refused_and_one_that_is_allowed_connects(
    browser: Browser, start_mesh: StartMesh, origin: str
) -> None:
    strict, allowing = await start_mesh(), await start_mesh(cors_origins=(origin,))
    # A browser tells a page of a refused connection this alone.
    assert await connected(browser, f"{origin}/", strict) == ["closed", 1006]
    assert await connected(browser, f"{origin}/", allowing) == ["message", '{"type":"pong"}']
    assert await connected(browser, f"{strict.url}/docs", strict) == ["message", '{"type":"pong"}']
