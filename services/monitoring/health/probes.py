"""Asks every part of the mesh whether it works, all at once and each for a bounded time: none holds the answer up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.channel import MeshChannel
from meshkit.errors import MeshError, unavailable
from meshkit.health import is_part
from services.monitoring.health.domain import (
    BreakerView,
    CircuitState,
    PartFinding,
    PartKind,
    QueueView,
    Survey,
    provider_parts,
    worker_parts,
    workers_of,
    worst,
)
from services.monitoring.task_calls import TaskFigures

_SERVING = health_pb2.HealthCheckResponse.SERVING
_CRITICAL_SERVICES = frozenset({"tasks"})


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """What the mesh stands on.

    Attributes:
        ping_database: Asks PostgreSQL; raises where it does not work.
        ping_bus: Asks NATS, likewise.
        bus_version: Version of the NATS server; empty where it is not known.
    """

    ping_database: Callable[[], Awaitable[object]]
    ping_bus: Callable[[], Awaitable[object]]
    bus_version: Callable[[], str]


class Probes:
    """Asks every part.

    Args:
        infrastructure: What the mesh stands on.
        services: Channels to the services, by role; with their addresses.
        tasks: The tasks service, which knows of queues and providers.
        critical_queues: Queues without whose workers the mesh is unhealthy.
        clock: The present.
    """

    def __init__(
        self,
        infrastructure: Infrastructure,
        services: Mapping[str, tuple[MeshChannel, str]],
        tasks: TaskFigures,
        *,
        critical_queues: Sequence[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._infrastructure = infrastructure
        self._services = {
            role: (channel.stub(health_pb2_grpc.HealthStub), address) for role, (channel, address) in services.items()
        }
        self._tasks = tasks
        self._critical = tuple(critical_queues)
        self._clock = clock

    async def ask(self, seconds: float) -> Survey:
        """Ask all parts.

        Args:
            seconds: How long each may take.
        """
        services = [self._service(role, seconds) for role in self._services]
        fixed, (work, breakers, stranded) = await asyncio.gather(
            asyncio.gather(self._database(seconds), self._bus(seconds), *services), self._work(seconds)
        )
        return Survey(self._clock(), [*fixed, *work], breakers, stranded)

    async def _database(self, seconds: float) -> PartFinding:
        part = PartFinding("postgres", "PostgreSQL", PartKind.STORE, critical=True, url="")
        return await _asked(part, self._infrastructure.ping_database, seconds)

    async def _bus(self, seconds: float) -> PartFinding:
        part = PartFinding("redis", "NATS", PartKind.BUS, critical=True, url="")
        found = await _asked(part, self._infrastructure.ping_bus, seconds)
        return replace(found, details={"role": "nats", "nats_version": self._infrastructure.bus_version()})

    async def _service(self, role: str, seconds: float) -> PartFinding:
        stub, address = self._services[role]
        part = PartFinding(
            role,
            f"Service {role}",
            PartKind.SERVICE,
            role in _CRITICAL_SERVICES,
            f"grpc://{address.removeprefix('dns:///')}",
        )

        async def serves() -> None:
            listed = await stub.List(health_pb2.HealthListRequest(), timeout=seconds)
            states = {name: one.status == _SERVING for name, one in listed.statuses.items()}
            broken = sorted(name for name, works in states.items() if name and not works and is_part(name))
            if not states.get("", False):
                raise unavailable(f"does not serve: {', '.join(broken)}" if broken else "does not serve")

        return await _asked(part, serves, seconds)

    async def _work(self, seconds: float) -> tuple[list[PartFinding], Sequence[BreakerView] | None, Mapping[str, int]]:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                queues, (breakers, queue_of) = await asyncio.gather(
                    self._tasks.queues(seconds), self._tasks.breakers(seconds)
                )
        except (MeshError, TimeoutError):
            error = "the tasks service does not answer"
            return [replace(workers_of(name, self._critical), error=error) for name in self._critical], None, {}
        took = time.monotonic() - begun
        circuits = _circuits(queues, breakers, queue_of)
        parts = worker_parts(queues, self._critical, circuits, took) + provider_parts(breakers, took)
        return parts, breakers, {one.name: one.waiting for one in queues if one.waiting and not one.workers}


def _circuits(
    queues: Sequence[QueueView], breakers: Sequence[BreakerView], queue_of: Mapping[str, str]
) -> dict[str, CircuitState]:
    return {
        queue.name: worst([one.state for one in breakers if queue_of[one.provider] == queue.name]) for queue in queues
    }


async def _asked(part: PartFinding, ask: Callable[[], Awaitable[object]], seconds: float) -> PartFinding:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            await ask()
    except TimeoutError:
        return replace(part, error=f"no answer within {seconds:g} s")
    except MeshError as error:
        return replace(part, error=error.message, seconds=time.monotonic() - begun)
    except Exception as error:
        return replace(part, error=type(error).__name__, seconds=time.monotonic() - begun)
    return replace(part, seconds=time.monotonic() - begun)
