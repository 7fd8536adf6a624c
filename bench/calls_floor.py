"""The least that a provider's picture costs on this machine, whoever handles it: read, judged and stored, and no more.

Each step is made as the worker makes it, by the same library, one after the other in one thread: the answer is read out
of its JSON, the picture decoded once, and its file put into the store. What leases, notes and completes a task comes on
top.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.embedded.s3 import S3Ports, S3Server
from meshkit.objects import ObjectStore

_TIMES = 40


@dataclass(frozen=True, slots=True)
class CallFloor:
    """Milliseconds of processor a picture.

    Attributes:
        reading: The answer, from its bytes to the picture's.
        judging: Decoding all of it, once.
        storing: Putting it into the store, in this process.
        store: The same in the store's process.
    """

    reading: float
    judging: float
    storing: float
    store: float

    @property
    def whole(self) -> float:
        """All of it."""
        return self.reading + self.judging + self.storing + self.store

    def ratio(self, bare: float, count: int, cores: int) -> float:
        """Return what this alone makes of so many bare calls at once, whose results come together: at least so much."""
        return (bare + count * self.whole / 1e3 / cores) / bare


def floor(folder: Path, body: bytes) -> CallFloor:
    """Measure.

    Args:
        folder: A place for the store.
        body: An answer of the provider.
    """
    return asyncio.run(_floor(folder, body))


async def _floor(folder: Path, body: bytes) -> CallFloor:
    server = S3Server(
        folder / "floor",
        S3Ports(*free_ports(10)),
        access_key=secrets.token_hex(8),
        secret_key=secrets.token_urlsafe(24),
        log=folder / "floor.log",
    )
    running = RunningServer(server)
    running.start()
    store = ObjectStore(server.endpoint, server.access_key, server.secret_key)
    picture, path, numbers = picture_of(body), folder / "floor.png", iter(range(10 * _TIMES))
    path.write_bytes(picture)
    process = psutil.Process(running.pid)

    async def read() -> None:
        picture_of(body)

    async def judge() -> None:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()

    async def put() -> None:
        await store.put("bench", f"{next(numbers)}.png", path, "image/png")

    try:
        await put()
        reading, judging = await _spent(read), await _spent(judge)
        before = _used(process)
        storing = await _spent(put)
        return CallFloor(reading, judging, storing, (_used(process) - before) / _TIMES * 1e3)
    finally:
        await store.close()
        running.stop()


def picture_of(body: bytes) -> bytes:
    """Return the picture in an answer."""
    data = json.loads(body)["candidates"][0]["content"]["parts"][0]["inlineData"]["data"]
    return base64.b64decode(data)


async def _spent(work: Callable[[], Awaitable[None]]) -> float:
    begun = time.process_time()
    for _ in range(_TIMES):
        await work()
    return (time.process_time() - begun) / _TIMES * 1e3


def _used(process: psutil.Process) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in (process, *process.children(recursive=True)))
