"""What the gateway tells of live events themselves, and of the mesh to operators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from meshkit.auth import READ
from meshkit.following import FollowerState
from meshkit.live import system
from meshkit.live.feed import OPERATORS, LiveFeed
from meshkit.live.system import MeshState
from meshkit.loops import Loop
from services.gateway.asgi import JsonResponse, header
from services.gateway.auth import Authenticator
from services.gateway.middleware import note_route

EVENTS_ROUTE, HEALTH_ROUTE = "/api/system/websocket/events", "/api/system/health/websocket"
# A breaker of the documented kind opens at this many failures.
_FAILURES = 5


class MeshTeller:
    """Tells operators how the mesh is, where some listen.

    Args:
        feed: Takes the messages.
        judge: Says how the mesh is.
        clients: Says how many clients listen.
        version: Version of the mesh.
        interval_seconds: How often it is told.
    """

    def __init__(
        self,
        feed: LiveFeed,
        judge: Callable[[], Awaitable[MeshState]],
        clients: Callable[[], int],
        *,
        version: str,
        interval_seconds: float,
    ) -> None:
        self._feed = feed
        self._judge = judge
        self._clients = clients
        self._version = version
        self._before: MeshState | None = None
        self.state = FollowerState()
        self.loop = Loop("live-status", self.tell, interval_seconds)

    async def tell(self) -> bool:
        """Tell it once; body of a loop."""
        if not self._feed.log.listened_to(OPERATORS):
            self._before = None
            self.state.following, self.state.failures = True, 0
            return False
        self.state.failures += 1
        now = await self._judge()
        self.state.following, self.state.failures = True, 0
        for change in system.changes(self._before or now, now):
            self._feed.tell_operators(change)
        self._feed.tell_operators(system.status(now, clients=self._clients(), version=self._version))
        self._before = now
        return False


class LivePages:
    """The endpoints.

    Args:
        guard: Checks tokens.
        feed: Where events come from.
        teller: Tells operators how the mesh is.
        registry: Which messages there are.
    """

    def __init__(self, guard: Authenticator, feed: LiveFeed, teller: MeshTeller, registry: dict[str, Any]) -> None:
        self._guard = guard
        self._feed = feed
        self._teller = teller
        self._registry = registry

    async def events(self, request: Request) -> Response:
        """Answer `GET /api/system/websocket/events`."""
        note_route(request.scope, f"GET {EVENTS_ROUTE}")
        await self._guard.admit(header(request.scope, b"authorization"), READ)
        return JsonResponse(self._registry)

    async def health(self, request: Request) -> Response:
        """Answer `GET /api/system/health/websocket`."""
        note_route(request.scope, f"GET {HEALTH_ROUTE}")
        await self._guard.admit(header(request.scope, b"authorization"), READ)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = {
            "event_broadcaster": _shown(self._feed.state, "Events of the mesh do not come: NATS does not answer"),
            "system_broadcaster": _shown(self._teller.state, "The state of the mesh is not known"),
            "timestamp": now,
        }
        return JsonResponse(body, headers={"cache-control": "no-store"})


def _shown(state: FollowerState, trouble: str) -> dict[str, Any]:
    works = state.following
    return {
        "state": "closed" if works else "open" if state.failures >= _FAILURES else "half_open",
        "failure_count": state.failures,
        "is_degraded": not works,
        "message": None if works else trouble,
    }
