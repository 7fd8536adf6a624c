"""`GET /health`: what it says, and with which status."""

from collections.abc import Collection
from typing import Any

import orjson
import pytest
from starlette.requests import Request

from meshkit.errors import unavailable
from meshkit.health import HealthPart, PartStates
from services.gateway.health import Health, ServiceHealth


async def works() -> None:
    """A store that answers."""


async def fails() -> None:
    raise ConnectionError


async def ask(
    store: Any = works, optional: Collection[str] = (), **services: ServiceHealth | None
) -> tuple[int, dict[str, Any]]:
    def probe(found: ServiceHealth | None) -> Any:
        async def answer(_seconds: float) -> ServiceHealth:
            if found is None:
                raise unavailable("The service is not reachable")
            return found

        return answer

    parts = PartStates([HealthPart("object_store", store)])
    health = Health({name: probe(found) for name, found in services.items()}, parts, "1.0", optional)
    request = Request({"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""})
    response = await health.answer(request)
    return response.status_code, orjson.loads(bytes(response.body))


@pytest.mark.parametrize(
    ("found", "status", "state", "problems"),
    [
        (ServiceHealth(serving=True), 200, "healthy", []),
        (ServiceHealth(serving=True, broken=("loops/relay", "nats")), 200, "degraded", ["loops/relay", "nats"]),
        (ServiceHealth(serving=False, broken=("postgresql",)), 503, "unhealthy", ["postgresql"]),
        (ServiceHealth(serving=False), 503, "unhealthy", ["does not serve"]),
        (None, 503, "unhealthy", ["does not serve"]),
    ],
)
async def test_what_does_not_work_is_named(found: Any, status: int, state: str, problems: list[str]) -> None:
    code, body = await ask(tasks=found, workflows=ServiceHealth(serving=True))
    assert (code, body["status"]) == (status, state)
    assert body["services"] == {"tasks": state, "workflows": "healthy"}
    assert body["problems"] == [f"tasks: {each}" for each in problems]


async def test_the_gateways_own_store_counts() -> None:
    code, body = await ask(store=fails, tasks=ServiceHealth(serving=True))
    assert (code, body["status"], body["problems"]) == (503, "unhealthy", ["gateway: object_store"])
    assert body["services"] == {"tasks": "healthy"}


@pytest.mark.parametrize("capture", [None, ServiceHealth(serving=False)])
async def test_a_service_that_is_optional_degrades_the_mesh_when_it_is_away(capture: ServiceHealth | None) -> None:
    code, body = await ask(optional=["capture"], tasks=ServiceHealth(serving=True), capture=capture)
    assert (code, body["status"], body["problems"]) == (200, "degraded", ["capture: does not serve"])
    assert body["services"] == {"tasks": "healthy", "capture": "unhealthy"}
    code, body = await ask(optional=["capture"], tasks=None, capture=capture)
    assert (code, body["status"]) == (503, "unhealthy")
