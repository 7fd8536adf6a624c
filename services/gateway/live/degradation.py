"""How much of the mesh works, as the monitoring service judges it: asked while operators listen, with their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from meshkit.errors import MeshError
from meshkit.live.system import MeshState
from services.gateway.endpoints import Transcoder
from services.gateway.health import DEGRADED, HEALTHY, UNHEALTHY
from services.gateway.jobs.calls import JobCallError, SurfaceCalls

PIPELINE = "/api/system/pipeline"
# Shorter than the time between two tellings.
_ASK_SECONDS = 3.0
# By the mode of degradation.
_STATUS = {"normal": HEALTHY, "degraded": DEGRADED, "minimal": UNHEALTHY, "offline": UNHEALTHY}
_WORST = (UNHEALTHY, DEGRADED, HEALTHY)


class OperatorTokens:
    """The tokens of the operators that listen."""

    def __init__(self) -> None:
        self._held: dict[object, str] = {}

    @contextmanager
    def held(self, token: str) -> Iterator[None]:
        """Have a token while its operator listens."""
        key = object()
        self._held[key] = token
        try:
            yield
        finally:
            del self._held[key]

    @property
    def newest(self) -> str:
        """The token of the operator who came last; empty while none listens."""
        return next(reversed(self._held.values()), "")


class JudgedMesh:
    """How the mesh is: what the gateway sees of it, and what monitoring does.

    Args:
        own: Says what the gateway sees.
        transcoder: Serves the surface that monitoring is asked by.
        tokens: The tokens of those who listen.
    """

    def __init__(self, own: Callable[[], Awaitable[MeshState]], transcoder: Transcoder, tokens: OperatorTokens) -> None:
        self._own = own
        self._transcoder = transcoder
        self._tokens = tokens

    async def judge(self) -> MeshState:
        """Return how the mesh is; what the gateway sees alone where monitoring does not answer."""
        own, told = await asyncio.gather(self._own(), self._ask())
        return own if told is None else together(own, told)

    async def _ask(self) -> Mapping[str, Any] | None:
        token = self._tokens.newest
        if not token:
            return None
        calls = SurfaceCalls(self._transcoder, f"Bearer {token}")
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found: Mapping[str, Any] | None = await calls.find(PIPELINE)
        except (JobCallError, MeshError, TimeoutError):
            return None
        return None if found is None else found["degradation"]


def together(own: MeshState, told: Mapping[str, Any]) -> MeshState:
    """Return a state with what monitoring watches: of what both see, the worse.

    Args:
        own: What the gateway sees.
        told: `degradation` of monitoring's answer.
    """
    services, problems = dict(own.services), list(own.problems)
    for one in told["services"]:
        name = one["name"]
        services[name] = _worse(services.get(name, HEALTHY), one["status"])
        if one["error_message"] and one["status"] != HEALTHY:
            problems.append(f"{name}: {one['error_message']}")
    status = _worse(own.status, _STATUS[told["mode"]])
    return MeshState(status, services, sorted(set(problems)), degradation=told["mode"])


def _worse(one: str, other: str) -> str:
    return min(one, other, key=_WORST.index)
