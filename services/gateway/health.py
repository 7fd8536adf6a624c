"""`/health`: whether the services behind the gateway answer, and what of theirs does not work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from meshkit.errors import MeshError
from meshkit.health import PartStates
from meshkit.live.system import MeshState
from services.gateway.asgi import JsonResponse
from services.gateway.middleware import note_route

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"
_OWN = "gateway"
_PROBE_SECONDS = 2.0
_PROBE_KEPT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What a service says of itself.

    Attributes:
        serving: Whether calls can be served.
        broken: Names of its parts that do not work.
    """

    serving: bool
    broken: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """The state in one word."""
        if not self.serving:
            return UNHEALTHY
        return DEGRADED if self.broken else HEALTHY


Probe = Callable[[float], Awaitable[ServiceHealth]]


class Health:
    """Whether the services behind the gateway answer.

    Args:
        probes: Asks a service, within so many seconds; raises `MeshError` where it does not answer.
        parts: What the gateway itself stands on.
        version: Version of the mesh.
        optional: Services without which the others serve their calls: what is wrong with one degrades the mesh.
    """

    def __init__(
        self, probes: Mapping[str, Probe], parts: PartStates, version: str, optional: Collection[str] = ()
    ) -> None:
        self._probes = probes
        self._optional = frozenset(optional)
        self._parts = parts
        self._version = version
        self._checked = float("-inf")
        self._found: dict[str, ServiceHealth] = {}
        self._lock = asyncio.Lock()

    async def _services(self) -> Mapping[str, ServiceHealth]:
        """Return what every service says, at most a second old."""
        async with self._lock:
            if time.monotonic() - self._checked > _PROBE_KEPT_SECONDS:
                names = list(self._probes)
                asked = asyncio.gather(*(self._ask(self._probes[name]) for name in names))
                found, _ = await asyncio.gather(asked, self._parts.refresh())
                self._found = dict(zip(names, found, strict=True))
                self._checked = time.monotonic()
        return self._found

    @staticmethod
    async def _ask(probe: Probe) -> ServiceHealth:
        try:
            return await probe(_PROBE_SECONDS)
        except MeshError:
            return ServiceHealth(serving=False)

    async def judge(self) -> MeshState:
        """Return how the mesh is, as of a second ago at most."""
        services = await self._services()
        own = ServiceHealth(self._parts.serving, tuple(name for name, works in self._parts.states.items() if not works))
        states = {name: one.state for name, one in services.items()}
        all_states = {own.state, *(self._weight(name, state) for name, state in states.items())}
        status = next((one for one in (UNHEALTHY, DEGRADED) if one in all_states), HEALTHY)
        problems = [
            f"{name}: {part}" for name, one in {**services, _OWN: own}.items() for part in one.broken or _silent(one)
        ]
        return MeshState(status, states, sorted(problems))

    def _weight(self, name: str, state: str) -> str:
        """Return what a service's state makes of the mesh's."""
        return DEGRADED if state == UNHEALTHY and name in self._optional else state

    async def answer(self, request: Request) -> Response:
        """Answer `GET /health`."""
        note_route(request.scope, "GET /health")
        state = await self.judge()
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = {
            "status": state.status,
            "version": self._version,
            "services": state.services,
            "problems": state.problems,
            "timestamp": now,
        }
        return JsonResponse(body, 503 if state.status == UNHEALTHY else 200, {"cache-control": "no-store"})

    @staticmethod
    async def alive(request: Request) -> Response:
        """Answer `GET /health/live`: the process itself, whatever is behind it."""
        note_route(request.scope, "GET /health/live")
        return JsonResponse({"status": HEALTHY})


def _silent(health: ServiceHealth) -> tuple[str, ...]:
    return () if health.serving else ("does not serve",)
