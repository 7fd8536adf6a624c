"""Workers as the tasks service sees them, many in one process: sessions, polls, heartbeats and completions by gRPC.

None has a device: an attempt ends in the moment in which its lease arrives. A run writes lines of JSON: `ready` once
all sessions are open, then, after a line on standard input and the seconds of warming up, `begun`, and at last its
figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from atelier.tasks.v1 import enums_pb2, noop_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.tasks_service_pb2_grpc import TasksServiceStub
from atelier.tasks.v1.worker_service_pb2 import (
    AttemptRef,
    CompleteManyRequest,
    Completion,
    HeartbeatRequest,
    Lease,
    LeaseRequest,
    OpenSessionRequest,
    ServedPair,
)
from atelier.tasks.v1.worker_service_pb2_grpc import WorkerServiceStub

from meshkit.auth import READ, WORKER, WRITE, TokenIssuer
from meshkit.channel import call_metadata
from meshkit.moments import duration_of, seconds_of
from meshkit.worker.pacing import pause

QUEUE = "inference"
TENANT = "bench"
POLL_SECONDS = 20.0
# Each worker of a cluster has a connection of its own; here so many share one, so that one process bears a thousand.
_WORKERS_A_CONNECTION = 20
_OPENED_AT_ONCE = 20
_RETRY_SECONDS = 0.2
_LATE_SECONDS = 10.0


@dataclass(slots=True)
class FleetFigures:
    """What workers saw while it was measured.

    Attributes:
        seconds: How long that was.
        leased: Leases that reached a worker.
        completed: Completions that were taken.
        errors: Calls that failed; those of workers were repeated.
        sent_ms: From the sending of a create until its lease reached a worker, sorted.
        answered_ms: From the answer to a create until then, sorted; below zero where the lease came first.
        lost: Creates that failed, or whose lease did not come.
    """

    seconds: float = 0.0
    leased: int = 0
    completed: int = 0
    errors: int = 0
    sent_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    lost: int = 0


class SimulatedFleet:
    """All workers of this process.

    Args:
        addresses: Replicas of the tasks service; calls go to them in turn.
        issuer: Signs the tokens of workers and of the caller who creates.
        slots: Attempts that a worker runs at once.
    """

    def __init__(self, addresses: Sequence[str], issuer: TokenIssuer, slots: int) -> None:
        self._target = "ipv4:" + ",".join(addresses)
        self._worker = call_metadata(token=issuer.issue("bench-worker", "", (WORKER,), 86_400))
        self._caller = call_metadata(token=issuer.issue("bench", TENANT, (READ, WRITE), 86_400))
        self._slots = slots
        self._channels: list[grpc.aio.Channel] = []
        self._running: list[asyncio.Task[None]] = []
        self._sessions: list[tuple[Any, str, float]] = []
        self._arrived: dict[str, float] = {}
        self._news = asyncio.Event()
        self.figures = FleetFigures()

    def _channel(self) -> grpc.aio.Channel:
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", json.dumps(config))]
        self._channels.append(grpc.aio.insecure_channel(self._target, options=options))
        return self._channels[-1]

    async def open(self, workers: int) -> None:
        """Open the sessions, and begin their heartbeats."""
        places = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def one(stub: Any, number: int) -> None:
            request = OpenSessionRequest(
                name=f"simulated-{os.getpid()}-{number}",
                kind="local",
                queues=[QUEUE],
                slots=self._slots,
                pairs=[ServedPair(task_type=enums_pb2.TASK_TYPE_NOOP)],
            )
            async with places:
                answer = await stub.OpenSession(request, metadata=self._worker, timeout=30, wait_for_ready=True)
            interval = seconds_of(answer.heartbeat_interval)
            self._sessions.append((stub, answer.session_id, interval))
            self._running.append(asyncio.create_task(self._beat(stub, answer.session_id, interval)))

        stubs: list[Any] = [WorkerServiceStub(self._channel()) for _ in range(-(-workers // _WORKERS_A_CONNECTION))]
        await asyncio.gather(*(one(stubs[number // _WORKERS_A_CONNECTION], number) for number in range(workers)))

    def poll(self) -> None:
        """Have all workers ask for work."""
        self._running += [asyncio.create_task(self._poll(stub, session)) for stub, session, _ in self._sessions]

    async def create(self, rate: float, seconds: float) -> None:
        """Create tasks at a steady rate, and note when the lease of each came."""
        channel = self._channel()
        stub: Any = TasksServiceStub(channel)
        await channel.channel_ready()
        task = task_pb2.CreateTask(origin_instance=TENANT, noop=noop_pb2.CreateNoopTask(steps=0))
        request = tasks_service_pb2.CreateTaskRequest(task=task)
        created: dict[str, tuple[float, float]] = {}

        async def one() -> None:
            sent = time.perf_counter()
            try:
                answer = await stub.CreateTask(request, metadata=self._caller, timeout=30)
            except grpc.aio.AioRpcError:
                self.figures.errors += 1
                return
            created[answer.task.id] = sent, time.perf_counter()

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(begun + number / rate - time.perf_counter())
                group.create_task(one())
        with suppress(TimeoutError):
            async with asyncio.timeout(_LATE_SECONDS):
                while not created.keys() <= self._arrived.keys():
                    self._news.clear()
                    await self._news.wait()
        came = [(self._arrived[name], *times) for name, times in created.items() if name in self._arrived]
        self.figures.sent_ms = sorted((at - sent) * 1e3 for at, sent, _ in came)
        self.figures.answered_ms = sorted((at - answered) * 1e3 for at, _, answered in came)
        self.figures.lost = int(rate * seconds) - len(came)

    async def close(self) -> None:
        """End everything; sessions are left to expire."""
        for each in self._running:
            each.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _poll(self, stub: Any, session: str) -> None:
        sequence = 1
        # As if each had waited for a while already, so that as many polls end in a second as in the next.
        wait = random.uniform(0, POLL_SECONDS)
        while True:
            asked = time.perf_counter()
            request = LeaseRequest(
                session_id=session, sequence=sequence, max_leases=self._slots, wait=duration_of(wait)
            )
            wait = POLL_SECONDS * random.uniform(0.75, 1.0)
            try:
                answer = await stub.Lease(request, metadata=self._worker, timeout=POLL_SECONDS + 5)
                sequence += 1
                if answer.leases:
                    await self._complete(stub, session, answer.leases)
            except grpc.aio.AioRpcError:
                self.figures.errors += 1
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if (seconds := pause(len(answer.leases), self._slots, time.perf_counter() - asked)) > 0:
                await asyncio.sleep(seconds)

    async def _complete(self, stub: Any, session: str, leases: Sequence[Lease]) -> None:
        now = time.perf_counter()
        self.figures.leased += len(leases)
        completions = []
        for lease in leases:
            self._arrived[lease.job_id] = now
            ref = AttemptRef(job_id=lease.job_id, attempt=lease.attempt)
            completions.append(Completion(ref=ref, result=task_pb2.TaskResult()))
        self._news.set()
        request = CompleteManyRequest(session_id=session, completions=completions)
        await stub.CompleteMany(request, metadata=self._worker, timeout=30)
        self.figures.completed += len(leases)

    async def _beat(self, stub: Any, session: str, interval: float) -> None:
        await asyncio.sleep(random.uniform(0, interval))
        while True:
            try:
                await stub.Heartbeat(HeartbeatRequest(session_id=session), metadata=self._worker, timeout=10)
            except grpc.aio.AioRpcError:
                self.figures.errors += 1
            await asyncio.sleep(interval * random.uniform(0.9, 1.0))


async def run(given: argparse.Namespace) -> None:
    """Run the fleet once; see the module."""
    fleet = SimulatedFleet(given.addresses, TokenIssuer(os.environ["ATELIER_AUTH_SECRET"]), given.slots)
    try:
        await fleet.open(given.workers)
        _tell("ready")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        fleet.poll()
        await asyncio.sleep(given.warm)
        fleet.figures = FleetFigures()
        _tell("begun")
        begun = time.perf_counter()
        if given.rate:
            await fleet.create(given.rate, given.seconds)
        else:
            await asyncio.sleep(given.seconds)
        fleet.figures.seconds = time.perf_counter() - begun
        _tell(asdict(fleet.figures))
    finally:
        await fleet.close()


def _tell(line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    """Run one fleet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs="+", help="host:port of each replica of tasks")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--slots", type=int, default=1, help="attempts that a worker runs at once")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm", type=float, default=1, help="seconds before it is measured")
    parser.add_argument("--rate", type=float, default=0, help="creates a second; 0 leases what waits already")
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
