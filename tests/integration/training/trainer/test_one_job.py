"""A trainer that takes one training and exits: a process, before the services as production composes them."""

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Store
from tests.integration.training.conftest import SECRET, Mesh
from tests.integration.training.trainer.conftest import picture

Run = Callable[..., Awaitable[asyncio.subprocess.Process]]


def images() -> list[str]:
    return ["data:image/png;base64," + base64.b64encode(picture(seed)).decode() for seed in range(3)]


@pytest.fixture
async def run(mesh: Mesh, nats_url: str, s3: S3Store, tmp_path: Path) -> AsyncIterator[Run]:
    """Starts trainers of one job."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(**settings: Any) -> asyncio.subprocess.Process:
        values = {
            "LISTEN": "127.0.0.1:0",
            "NATS_URL": nats_url,
            "S3_ENDPOINT": s3.endpoint,
            "S3_ACCESS_KEY": s3.access_key,
            "S3_SECRET_KEY": s3.secret_key,
            "S3_BUCKET": mesh.bucket,
            "AUTH_SECRET": SECRET,
            "TASKS_ADDRESS": mesh.tasks.address,
            "TRAINING_ADDRESS": mesh.training.address,
            "DATA": str(tmp_path),
            "DEVICE": "cpu",
            "TORCH_THREADS": "1",
            "TRAINER_PRESERVATION": "none",
            "TRAINER_ONE_JOB": "true",
            "SHUTDOWN_GRACE_SECONDS": "5",
            **settings,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.training.trainer"),
            env=os.environ | {f"ATELIER_{name}": str(value) for name, value in values.items()},
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def log(process: asyncio.subprocess.Process) -> str:
    _, told = await process.communicate()
    return told.decode()


async def sessions(mesh: Mesh) -> int:
    async with mesh.tasks.database.connection() as conn:
        [row] = await (await conn.execute("SELECT count(*) FROM sessions WHERE closed_at IS NULL")).fetchall()
    return int(row[0])


async def test_it_works_one_training_to_its_end_and_leaves_the_next_to_another(mesh: Mesh, run: Run) -> None:
    first = await mesh.create(source_images=images(), base_model_path="garments", steps=3)
    second = await mesh.create(source_images=images(), base_model_path="garments", steps=3)
    process = await run()
    told = await log(process)
    assert process.returncode == 0, told
    assert told.count("session_opened") == 1
    await mesh.training.maintenance.reconcile()
    assert [(await mesh.get(one["id"]))["status"] for one in (first, second)] == ["COMPLETED", "PENDING"], told
    assert await sessions(mesh) == 0


async def test_it_exits_where_no_training_is_left(mesh: Mesh, run: Run) -> None:
    process = await run(TRAINER_ONE_JOB_WAIT_SECONDS="0.3")
    told = await log(process)
    assert process.returncode == 0, told
    assert "session_opened" in told
    assert await sessions(mesh) == 0


async def test_a_signal_ends_it_while_it_waits(mesh: Mesh, run: Run) -> None:
    process = await run(TRAINER_ONE_JOB_WAIT_SECONDS="600")
    assert process.stderr is not None
    while b"session_opened" not in (line := await process.stderr.readline()):
        assert line, "it ended"
    process.send_signal(signal.SIGTERM)
    told = await log(process)
    assert process.returncode == 0, told
    assert await sessions(mesh) == 0
