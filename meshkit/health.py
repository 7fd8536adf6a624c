"""Whether a service works and what it stands on: asked when somebody asks, told by gRPC's health protocol.

`Check` of the empty name, or of a gRPC service, says whether calls can be served; `List` names every part besides, e.g.
`postgresql`, `nats`, `loops/tasks-expiry`. A part that is not essential may be away while the service serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from meshkit.logging import get_logger
from meshkit.loops import cancel

_log = get_logger(__name__)

# What does not answer within this time does not work; shorter than probes wait.
_CHECK_SECONDS = 1.5
_KEPT_SECONDS = 1.0
_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


@dataclass(frozen=True, slots=True)
class HealthPart:
    """Something that a service stands on.

    Attributes:
        name: What health checks call it.
        check: Asks it; raises where it does not work. May hang: it is then not asked a second time meanwhile.
        essential: Whether the service can serve nothing without it.
    """

    name: str
    check: Callable[[], Awaitable[object]]
    essential: bool = True


class PartStates:
    """The states of a service's parts, at most a second old.

    Args:
        parts: The parts.
        ailing: Names of further parts that do not work right now; none of them is essential.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        parts: Sequence[HealthPart] = (),
        ailing: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._ailing = ailing
        self._clock = clock
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._works = dict.fromkeys((part.name for part in parts), True)
        self._refreshed = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def states(self) -> dict[str, bool]:
        """Every part by name, and whether it worked when it was last asked."""
        return {**self._works, **dict.fromkeys(self._ailing(), False)}

    @property
    def serving(self) -> bool:
        """Whether every essential part worked."""
        return all(self._works[part.name] for part in self._parts if part.essential)

    async def refresh(self) -> None:
        """Ask every part, unless that was done a moment ago; takes a bounded time."""
        async with self._lock:
            if self._clock() - self._refreshed < _KEPT_SECONDS:
                return
            for part in self._parts:
                if part.name not in self._asked:
                    self._asked[part.name] = asyncio.create_task(_ask(part), name=f"health-{part.name}")
            if self._asked:
                await asyncio.wait(self._asked.values(), timeout=_CHECK_SECONDS)
            for part in self._parts:
                task = self._asked[part.name]
                works = task.done() and task.result()
                if works is not self._works[part.name]:
                    _log.warning("health_changed", part=part.name, works=works)
                self._works[part.name] = works
                if task.done():
                    del self._asked[part.name]
            self._refreshed = self._clock()

    async def close(self) -> None:
        """Ask no more."""
        await cancel(self._asked.values())


async def _ask(part: HealthPart) -> bool:
    try:
        await part.check()
    except Exception:  # whatever it is, the part does not work
        return False
    return True


def is_part(name: str) -> bool:
    """Whether a name in `List` is that of a part: gRPC services are named with their package."""
    return "/" in name or "." not in name


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc] # the library is untyped
    """Answers health checks.

    Args:
        parts: What the service stands on.
    """

    def __init__(self, parts: PartStates) -> None:
        super().__init__()
        self._parts = parts
        self._wanted: dict[str, bool] = {}

    async def Check(  # noqa: N802 -- gRPC's name
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """Answer for the process, a gRPC service, or a part."""
        await self._refresh()
        works = self._parts.states.get(request.service)
        if works is not None:
            return health_pb2.HealthCheckResponse(status=_STATUS[works])
        return await super().Check(request, context)

    async def List(  # noqa: N802 -- gRPC's name
        self,
        request: Any,  # noqa: ARG002 -- gRPC's signature
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 -- as above
    ) -> Any:
        """Answer for all of them."""
        await self._refresh()
        parts = {name: _STATUS[works] for name, works in self._parts.states.items()}
        statuses = {**self._server_status, **parts}
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=status) for name, status in statuses.items()}
        )

    async def tell(self, service: str, *, serving: bool) -> None:
        """Note whether a service can do its work; it serves only while its essential parts work too.

        Args:
            service: Full name of the service, empty for the process.
            serving: Whether it can.
        """
        self._wanted[service] = serving
        await self.set(service, _STATUS[serving and self._parts.serving])

    async def close(self) -> None:
        """Ask no part any more."""
        await self._parts.close()

    async def _refresh(self) -> None:
        before = self._parts.serving
        await self._parts.refresh()
        if self._parts.serving is not before:
            for service, serving in self._wanted.items():
                await self.set(service, _STATUS[serving and self._parts.serving])
