"""The worker as a process of its own: its death, its child's, its drain on SIGTERM, messages over NATS."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from atelier.inference.v1.inference_service_pb2 import DescribeRequest
from atelier.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.bus import Bus
from meshkit.config import MeshSettings
from meshkit.health import PROCESS
from meshkit.worker.supervisor import ChildLimits, ChildLost, ChildNotStarted, ChildState, ChildSupervisor
from services.inference.child import ChildSettings
from services.inference.tasktypes import parse_types
from tests.conftest import NatsControl, S3Store
from tests.integration.inference.conftest import StartWorker, Worker, served, worker_environment
from tests.integration.inference.fake_tasks import FakeTasksService

SERVING = health_pb2.HealthCheckResponse.SERVING
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
    await tasks.until(lambda: tasks.progress, 60)
    [child] = psutil.Process(process.pid).children()
    process.kill()
    await process.wait()
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_the_child_knows_none_of_the_meshs_secrets(
    tasks: FakeTasksService, process: asyncio.subprocess.Process
) -> None:
    tasks.add(steps=10_000, step_ms=50)
    await tasks.until(lambda: tasks.progress, 60)
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
    assert await asyncio.wait_for(child.wait(), 60) == 1


async def test_sigterm_drains_and_leaves_with_success(
    tasks: FakeTasksService, process: asyncio.subprocess.Process
) -> None:
    running, waiting = tasks.add(steps=20, step_ms=50), tasks.add()
    await tasks.until(lambda: tasks.progress and tasks.active([running, waiting]) == 2, 60)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert [each.ref.job_id for each in tasks.completed] == [running]
    assert tasks.released == [(waiting, 1)]


async def test_news_of_a_cancel_reaches_the_worker_before_its_next_heartbeat(
    tasks: FakeTasksService, start_worker: StartWorker, nats_server: NatsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.ttl = 600.0  # heartbeats go every 200 seconds
    await start_worker(nats_url=nats_server.url)
    job = tasks.add(steps=10_000, step_ms=50)
    await tasks.until(lambda: tasks.progress)
    bus = Bus(nats_server.url)
    await bus.connect(60)
    tasks.cancelled.add(job)
    [session] = tasks.sessions
    async with asyncio.timeout(60):
        while (job, 1) not in tasks.released:  # news is not kept for who subscribes later
            bus.notify(f"atelier.cancel.{session}")
            await asyncio.sleep(0.2)
    await bus.close()


async def test_a_child_that_never_starts_makes_the_worker_unhealthy_and_is_not_started_in_a_circle() -> None:
    causes: list[str] = []
    pauses: list[float] = []
    enough, healthy = asyncio.Event(), list[bool]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        healthy.append(supervisor.healthy)
        if len(pauses) == 10:
            enough.set()
            await asyncio.Event().wait()

    supervisor = ChildSupervisor(
        [sys.executable, "-c", "raise SystemExit(1)"], limits=LIMITS, on_lost=causes.append, sleep=sleep
    )
    supervisor.start()
    async with asyncio.timeout(60):
        await enough.wait()
    assert healthy == [True] * 2 + [False] * 8
    assert all(0.2 * 2**n <= pause <= 0.4 * 2**n for n, pause in enumerate(pauses[:6]))
    assert 15 <= pauses[-1] <= 30
    assert causes == ["start"] * 10
    assert supervisor.fault == "The worker's process does not start: it ended with status 1."
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


# A child that lacks a package until a file is there, as with a broken installation of torch.
LACKING = """
import pathlib, runpy, sys
if not pathlib.Path(sys.argv[1]).exists():
    import no_such_package
sys.argv = [sys.argv[0], *sys.argv[2:]]
runpy.run_module("services.inference.child", run_name="__main__")
"""
Serving = Callable[[str], Awaitable[bool]]


class Package:
    """What the child needs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def install(self) -> None:
        self._file.touch()

    def remove(self) -> None:
        self._file.unlink()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that the child lacks until it is installed."""
    file, command = tmp_path / "package", ChildSettings.command
    monkeypatch.setattr(
        ChildSettings, "command", lambda self: [sys.executable, "-c", LACKING, str(file), *command(self)[3:]]
    )
    return Package(file)


@asynccontextmanager
async def asked(worker: Worker) -> AsyncIterator[Serving]:
    """Asks health checks."""
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def serving(service: str) -> bool:
            return bool((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING)

        yield serving


async def becomes(serving: Serving, wanted: bool) -> None:
    async with asyncio.timeout(60):
        while await serving("") is not wanted:  # noqa: ASYNC110 -- remote
            await asyncio.sleep(0.05)


async def test_a_worker_whose_child_does_not_start_says_why_takes_nothing_and_comes_back_by_itself(
    tasks: FakeTasksService, start_worker: StartWorker, package: Package
) -> None:
    worker = await start_worker()
    job = tasks.add()
    async with asked(worker) as serving:
        await becomes(serving, wanted=False)
        assert await serving(PROCESS), "to restart the process mends nothing"
        await tasks.until(lambda: any(tasks.faults))
        fault = tasks.faults[-1]
        assert fault == "The worker's process does not start: ModuleNotFoundError: No module named 'no_such_package'"
        async with worker.channel() as channel:
            assert (await channel.stub(InferenceServiceStub).Describe(DescribeRequest())).fault == fault
        assert [lease.job_id for lease in tasks.queue] == [job], "it waits for a worker that can"
        assert not tasks.polls
        package.install()
        await tasks.until(lambda: tasks.completions(job))
        assert await serving("")
    assert tasks.completed[0].ref.attempt == 1
    await tasks.until(lambda: not tasks.faults[-1])


async def test_a_poll_that_is_out_when_no_child_comes_up_any_more_brings_nothing(
    tasks: FakeTasksService, start_worker: StartWorker, package: Package
) -> None:
    package.install()
    worker = await start_worker()
    first = tasks.add()
    async with asked(worker) as serving:
        await tasks.until(lambda: tasks.completions(first))
        await tasks.until(lambda: len(tasks.polls) >= 2)  # the next one is out
        package.remove()
        [child] = [one for one in psutil.Process().children() if LACKING in one.cmdline()]
        child.kill()
        await becomes(serving, wanted=False)
        asked_so_far = len(tasks.polls)
        job = tasks.add()
        heartbeats = len(tasks.faults)
        await tasks.until(lambda: len(tasks.faults) >= heartbeats + 2)
        assert [lease.job_id for lease in tasks.queue] == [job]
        assert len(tasks.polls) == asked_so_far
        package.install()
        await tasks.until(lambda: tasks.completions(job), 60)
    assert not tasks.released
    assert not tasks.failed


async def test_a_child_whose_model_is_not_on_this_machine_does_not_start() -> None:
    settings = ChildSettings(
        task_types=parse_types(["GENERATION"]), threads=1, model="no/such-model", device="cpu", model_budget_bytes=0
    )
    limits = ChildLimits(memory_bytes=4 << 30, sample_seconds=0.1)
    supervisor = ChildSupervisor(settings.command(), limits=limits, once=True)
    supervisor.start()
    with pytest.raises(ChildNotStarted) as lost:
        await supervisor.wait_ready()
    assert "The model of this worker is not on this machine." in lost.value.fault
    await supervisor.stop()
