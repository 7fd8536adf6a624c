"""Whether a service works and what it stands on: asked when somebody asks, told by gRPC's health protocol.

`Check` of the empty name, or of a gRPC service, says whether calls can be served; `List` names every part besides, e.g.
`postgresql`, `nats`, `loops/tasks-expiry`. A part that is not essential may be away while the service serves.

Two names answer for this one process among its replicas: `PROCESS` for whoever restarts it, `REPLICA` for whoever
spreads calls over several.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from meshkit.logging import get_logger
from meshkit.loops import cancel

_log = get_logger(__name__)

# Whether the process serves, whatever it stands on: to restart it mends no database and no child. With a dot, as gRPC
# services are named, so that nobody takes either name for a part.
PROCESS = "atelier.Process"
# Whether calls should come to this replica: neither while it stops, nor while what every call needs does not answer it.
# Calls that it has go on meanwhile, until that is lost.
REPLICA = "atelier.Replica"

# What does not answer within this time does not work; shorter than probes wait.
_CHECK_SECONDS = 1.5
_KEPT_SECONDS = 1.0
_WATCH_SECONDS = 1.0
# A part that does not work is asked again sooner, until it is certain: so often in a row, and it is lost. A server that
# is only slow for a moment answers one of them.
_AGAIN_SECONDS = 0.25
_LOST_FAILURES = 3
_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


@dataclass(frozen=True, slots=True)
class HealthPart:
    """Something that a service stands on.

    Attributes:
        name: What health checks call it.
        check: Asks it; raises where it does not work. May hang: it is then not asked a second time meanwhile.
        essential: Whether the service can serve nothing without it.
        every_call: Whether every call needs it, so that a replica that is cut off from it should be sent none.
    """

    name: str
    check: Callable[[], Awaitable[object]]
    essential: bool = True
    every_call: bool = False


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
        self._failures = dict.fromkeys((part.name for part in parts), 0)
        self._refreshed = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def states(self) -> dict[str, bool]:
        """Every part by name, and whether it worked when it was last asked."""
        works = {name: not failures for name, failures in self._failures.items()}
        return {**works, **dict.fromkeys(self._ailing(), False)}

    @property
    def serving(self) -> bool:
        """Whether every essential part worked."""
        return not any(self._failures[part.name] for part in self._parts if part.essential)

    @property
    def takes_calls(self) -> bool:
        """Whether every part worked that every call needs."""
        return not any(self._failures[part.name] for part in self._parts if part.every_call)

    @property
    def cut_off(self) -> bool:
        """Whether a part that every call needs failed several times in a row: it is not only slow."""
        return any(self._failures[part.name] >= _LOST_FAILURES for part in self._parts if part.every_call)

    @property
    def in_doubt(self) -> bool:
        """Whether a part that every call needs failed, and whether it is lost is not certain yet."""
        return not self.takes_calls and not self.cut_off

    async def refresh(self) -> None:
        """Ask every part, unless that was done a moment ago; takes a bounded time."""
        async with self._lock:
            if self._clock() - self._refreshed < (_AGAIN_SECONDS if self.in_doubt else _KEPT_SECONDS):
                return
            for part in self._parts:
                if part.name not in self._asked:
                    self._asked[part.name] = asyncio.create_task(_ask(part), name=f"health-{part.name}")
            if self._asked:
                await asyncio.wait(self._asked.values(), timeout=_CHECK_SECONDS)
            for part in self._parts:
                task = self._asked[part.name]
                works, failures = task.done() and task.result(), self._failures[part.name]
                if works is bool(failures):
                    _log.warning("health_changed", part=part.name, works=works)
                self._failures[part.name] = 0 if works else failures + 1
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
        max_watchers: Streams of watchers at once.
        while_cut_off: Called each time that a part which every call needs is found to be lost, not only slow.
    """

    def __init__(
        self, parts: PartStates, max_watchers: int = 2000, while_cut_off: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._parts = parts
        self._wanted: dict[str, bool] = {}
        self._max_watchers = max_watchers
        self._while_cut_off = while_cut_off
        self._watchers = 0
        self._news = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._dismissed = False

    @property
    def watched(self) -> bool:
        """Whether somebody is told of changes."""
        return self._watchers > 0

    async def Check(  # noqa: N802 -- gRPC's name
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """Answer for the process, a gRPC service, or a part."""
        await self._refresh()
        works = self._parts.states.get(request.service)
        if works is not None:
            return health_pb2.HealthCheckResponse(status=_STATUS[works])
        return await super().Check(request, context)

    async def Watch(  # noqa: N802 -- gRPC's name
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Tell each change until `dismiss`; the library's own streams would hold a stop up for all its grace."""
        if self._watchers >= self._max_watchers:
            # A channel that is told so sends its calls without asking.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "As many watch this server's health as may.")
        self._watchers += 1
        try:
            if self._following is None or self._following.done():
                self._following = asyncio.create_task(self._follow(), name="health-watched")
            await self._refresh()
            told = None
            while True:
                news, status = self._news, self._status(request.service)
                if status != told:
                    yield health_pb2.HealthCheckResponse(status=status)
                    told = status
                if self._dismissed:
                    return
                if news is self._news:
                    await news.wait()
        finally:
            self._watchers -= 1

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

    async def open(self) -> None:
        """Tell that the process serves, for those who ask for it alone."""
        await self.set(PROCESS, _STATUS[True])
        await self.set(REPLICA, _STATUS[self._parts.takes_calls])

    async def set(self, service: str, status: Any) -> None:
        """Set what is answered for a name, and tell those who watch."""
        await super().set(service, status)
        self._wake()

    async def enter_graceful_shutdown(self) -> None:
        """Answer for every name that it serves no more."""
        await super().enter_graceful_shutdown()
        self._wake()

    def dismiss(self) -> None:
        """End the streams of those who watch."""
        self._dismissed = True
        self._wake()

    async def close(self) -> None:
        """Ask no part any more."""
        await cancel([] if self._following is None else [self._following])
        await self._parts.close()

    def _status(self, name: str) -> Any:
        works = self._parts.states.get(name)
        if works is not None:
            return _STATUS[works]
        return self._server_status.get(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _follow(self) -> None:
        """Ask the parts while somebody watches: nobody else may do it."""
        while self._watchers:
            await self._refresh()
            await asyncio.sleep(_AGAIN_SECONDS if self._parts.in_doubt else _WATCH_SECONDS)

    async def _refresh(self) -> None:
        parts, before = self._parts, (self._parts.serving, self._parts.takes_calls, self._parts.states)
        await parts.refresh()
        if parts.serving is not before[0]:
            for service, serving in self._wanted.items():
                await self.set(service, _STATUS[serving and parts.serving])
        if parts.takes_calls is not before[1] and REPLICA in self._server_status:
            await self.set(REPLICA, _STATUS[parts.takes_calls])
        if parts.cut_off:
            self._while_cut_off()
        if parts.states != before[2]:
            self._wake()
