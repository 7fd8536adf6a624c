"""The worker as a process of its own: its death, its child's, its drain on SIGTERM, messages over NATS."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.bus import Bus
from meshkit.config import MeshSettings
from meshkit.worker.supervisor import ChildLimits, ChildLost, ChildState, ChildSupervisor
from tests.conftest import NatsControl, S3Store
from tests.integration.inference.conftest import StartWorker, served, worker_environment
from tests.integration.inference.fake_tasks import FakeTasksService

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIMITS = ChildLimits(memory_bytes=1 << 30, start_seconds=10, sample_seconds=0.1)


@pytest.fixture
async def process(
    tasks: FakeTasksService, s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m services.inference`, killed at the end if the test did not."""
    environment = worker_environment(s3, tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with served(tasks, MeshSettings()) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.inference",
            env={**os.environ, **environment, "ATELIER_TASKS_ADDRESS": server.address},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_the_child_dies_with_its_killed_parent(
    tasks: FakeTasksService, process: asyncio.subprocess.Process
) -> None:
    tasks.add(steps=10_000, step_ms=50)
    await tasks.until(lambda: tasks.progress, 30)
    [child] = psutil.Process(process.pid).children()
    process.kill()
    await process.wait()
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=3)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_the_child_knows_none_of_the_meshs_secrets(
    tasks: FakeTasksService, process: asyncio.subprocess.Process
) -> None:
    tasks.add(steps=10_000, step_ms=50)
    await tasks.until(lambda: tasks.progress, 30)
    parent = psutil.Process(process.pid)
    [child] = parent.children()
    assert any(name.startswith("ATELIER_") for name in parent.environ())
    assert not [name for name in child.environ() if name.startswith("ATELIER_")]


async def test_a_child_whose_pipe_is_closed_leaves(tmp_path: Path) -> None:
    """Where the kernel has no PDEATHSIG, the end of the pipe tells the child that its parent is gone."""
    code = (
        "import socket, sys\n"
        "from atelier.inference.v1.child_pb2 import ChildHello\n"
        "from meshkit.worker.child import ChildRuntime\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "ChildRuntime(sock, execute=list, resident=lambda: None, threads=1).serve(ChildHello())\n"
    )
    ours, theirs = socket.socketpair()
    with theirs:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
    ours.close()
    assert await asyncio.wait_for(child.wait(), 20) == 1


async def test_sigterm_drains_and_leaves_with_success(
    tasks: FakeTasksService, process: asyncio.subprocess.Process
) -> None:
    running, waiting = tasks.add(steps=20, step_ms=50), tasks.add()
    await tasks.until(lambda: tasks.progress and tasks.active([running, waiting]) == 2, 30)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert [each.ref.job_id for each in tasks.completed] == [running]
    assert tasks.released == [(waiting, 1)]


async def test_news_of_a_cancel_reaches_the_worker_before_its_next_heartbeat(
    tasks: FakeTasksService, start_worker: StartWorker, nats_server: NatsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.ttl = 60.0  # heartbeats go every 20 seconds
    await start_worker(nats_url=nats_server.url)
    job = tasks.add(steps=10_000, step_ms=50)
    await tasks.until(lambda: tasks.progress)
    bus = Bus(nats_server.url)
    await bus.connect(5)
    tasks.cancelled.add(job)
    [session] = tasks.sessions
    bus.notify(f"atelier.cancel.{session}")
    began = time.monotonic()
    await tasks.until(lambda: (job, 1) in tasks.released, 10)
    assert time.monotonic() - began < 2
    await bus.close()


async def test_a_child_that_never_starts_makes_the_worker_unhealthy_and_is_not_started_in_a_circle() -> None:
    causes: list[str] = []
    supervisor = ChildSupervisor([sys.executable, "-c", "raise SystemExit(1)"], limits=LIMITS, on_lost=causes.append)
    supervisor.start()
    async with asyncio.timeout(20):
        while supervisor.healthy:  # noqa: ASYNC110 -- a supervisor tells a callback, and there is none here
            await asyncio.sleep(0.02)
    before = len(causes)
    await asyncio.sleep(1.0)
    assert len(causes) - before <= 2
    assert set(causes) == {"start"}
    assert not supervisor.ready
    await supervisor.stop()
    assert supervisor.state is ChildState.STOPPED


async def test_a_stopped_supervisor_tells_those_who_wait_for_a_child() -> None:
    supervisor = ChildSupervisor([sys.executable, "-c", "import time; time.sleep(60)"], limits=LIMITS)
    supervisor.start()
    waiting = asyncio.create_task(supervisor.wait_ready())
    await asyncio.sleep(0.2)
    pid = supervisor.pid
    await supervisor.stop()
    with pytest.raises(ChildLost):
        await waiting
    assert pid is None or not psutil.pid_exists(pid)


async def test_the_worker_answers_before_its_child_is_ready_and_says_when_none_comes_up(
    tasks: FakeTasksService, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child's own command fails, as with a broken installation of torch.
    monkeypatch.setattr(
        "services.inference.child.ChildSettings.command", lambda _: [sys.executable, "-c", "raise SystemExit(1)"]
    )
    worker = await start_worker()
    job = tasks.add()
    async with grpc.aio.insecure_channel(worker.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(20):
            while (await health.Check(health_pb2.HealthCheckRequest())).status != NOT_SERVING:  # noqa: ASYNC110 -- remote
                await asyncio.sleep(0.05)
    assert not tasks.active([job])
