"""Events as services publish them, and clients that listen."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2
from websockets.asyncio.client import ClientConnection, connect

from meshkit.bus import Bus
from meshkit.outbox import event_headers
from tests.integration.gateway.conftest import Mesh


def created(job: str = "", task_type: str = "GENERATION") -> events_pb2.TaskCreatedEvent:
    event = events_pb2.TaskCreatedEvent(task_id=job or str(uuid.uuid4()), task_type=task_type, status="PENDING")
    event.created_at.GetCurrentTime()
    return event


def ended(job: str, what: str, error: str | None = None) -> events_pb2.TaskStatusEvent:
    status = enums_pb2.TaskStatus.Value(f"TASK_STATUS_{what.upper()}")
    event = events_pb2.TaskStatusEvent(task_id=job, task_type="GENERATION", status=status, error_message=error)
    event.timestamp.GetCurrentTime()
    return event


async def publish(bus: Bus, subject: str, event: Any, tenant: str = "acme") -> None:
    headers = event_headers(version=1, tenant=tenant, event_type="x", traceparent="")
    await bus.publish(subject, event.SerializeToString(), headers, msg_id=str(uuid.uuid4()))


async def publish_created(bus: Bus, count: int = 1, tenant: str = "acme") -> list[str]:
    """Publish that tasks were accepted; return their ids."""
    events = [created() for _ in range(count)]
    for event in events:
        await publish(bus, "atelier.tasks.v1.task.created", event, tenant)
    return [event.task_id for event in events]


def address(mesh: Mesh, path: str = "/ws/events", **query: str) -> str:
    pairs = "&".join(f"{name}={value}" for name, value in query.items())
    return f"ws{mesh.url.removeprefix('http')}{path}?{pairs}"


@asynccontextmanager
async def listening(
    mesh: Mesh, path: str = "/ws/events", tenant: str = "acme", scopes: tuple[str, ...] = ("read",)
) -> AsyncIterator[ClientConnection]:
    async with connect(address(mesh, path, token=mesh.token(tenant, scopes))) as client:
        # Once it is answered, the client's place among the messages is taken.
        await say(client, type="ping")
        while (answer := await heard(client))["type"] == "ping":  # a heartbeat, if this takes long
            pass
        assert answer == {"type": "pong"}
        yield client


async def say(client: ClientConnection, **message: Any) -> None:
    await client.send(json.dumps(message))


async def heard(client: ClientConnection, seconds: float = 60.0) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        found: dict[str, Any] = json.loads(await client.recv())
        return found


async def heard_until(client: ClientConnection, type_: str) -> list[dict[str, Any]]:
    """Return what is heard up to a message of a type, that one last."""
    found = [await heard(client)]
    while found[-1].get("type") != type_:
        found.append(await heard(client))
    return found
