"""`/health`: whether the services behind the gateway answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from meshkit.errors import MeshError
from services.gateway.asgi import JsonResponse
from services.gateway.middleware import note_route

HEALTHY, UNHEALTHY = "healthy", "unhealthy"
_PROBE_SECONDS = 2.0
_PROBE_KEPT_SECONDS = 1.0

Probe = Callable[[float], Awaitable[None]]


class Health:
    """Whether the services behind the gateway answer.

    Args:
        probes: Asks a service, within so many seconds; raises `MeshError` where it does not answer.
        version: Version of the mesh.
    """

    def __init__(self, probes: Mapping[str, Probe], version: str) -> None:
        self._probes = probes
        self._version = version
        self._checked = float("-inf")
        self._states: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def states(self) -> dict[str, str]:
        """Return the state of every service, at most a second old."""
        async with self._lock:
            if time.monotonic() - self._checked > _PROBE_KEPT_SECONDS:
                names = list(self._probes)
                found = await asyncio.gather(*(self._ask(self._probes[name]) for name in names))
                self._states = dict(zip(names, found, strict=True))
                self._checked = time.monotonic()
        return self._states

    @staticmethod
    async def _ask(probe: Probe) -> str:
        try:
            await probe(_PROBE_SECONDS)
        except MeshError:
            return UNHEALTHY
        return HEALTHY

    async def answer(self, request: Request) -> Response:
        """Answer `GET /health`."""
        note_route(request.scope, "GET /health")
        states = await self.states()
        status = HEALTHY if all(one == HEALTHY for one in states.values()) else UNHEALTHY
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = {"status": status, "version": self._version, "services": states, "timestamp": now}
        return JsonResponse(body, 200 if status == HEALTHY else 503, {"cache-control": "no-store"})

    @staticmethod
    async def alive(request: Request) -> Response:
        """Answer `GET /health/live`: the process itself, whatever is behind it."""
        note_route(request.scope, "GET /health/live")
        return JsonResponse({"status": HEALTHY})
