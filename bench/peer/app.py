"""The peer: FastAPI, Celery on Redis and PostgreSQL doing one no-op task, as its users would write it.

It runs in an environment of its own (`bench/peer/requirements.lock`) and imports nothing of the mesh. It does less
than the mesh does for the same request: no token, no tenant, no event, no lease.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from celery import Celery
from celery.signals import worker_process_init
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field

DSN = os.environ["PEER_DATABASE_URL"]
BROKER = os.environ["PEER_BROKER_URL"]

TABLE = """
CREATE TABLE IF NOT EXISTS peer_tasks (
    id uuid PRIMARY KEY,
    status text NOT NULL,
    priority int NOT NULL,
    origin_instance text NOT NULL,
    payload text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    completed_at timestamptz
)
"""

queue = Celery("peer", broker=BROKER)
# Users who do not want to lose a task with its worker choose late acknowledgement.
queue.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)

_connection: dict[str, psycopg.Connection[Any]] = {}


@worker_process_init.connect
def _connect(**_: object) -> None:
    _connection["worker"] = psycopg.connect(DSN, autocommit=True)


@queue.task(name="peer.noop")
def noop(task_id: str) -> None:
    """Mark the task as begun and as done: two commits, as the mesh does."""
    connection = _connection["worker"]
    connection.execute(
        "UPDATE peer_tasks SET status = 'EXECUTING', started_at = clock_timestamp()"
        " WHERE id = %s AND status = 'PENDING'",
        [task_id],
    )
    connection.execute(
        "UPDATE peer_tasks SET status = 'COMPLETED', completed_at = clock_timestamp() WHERE id = %s", [task_id]
    )


class Create(BaseModel):
    """Body of a create."""

    origin_instance: str = Field(max_length=255)
    priority: int = 0
    payload: str | None = Field(default=None, max_length=65536)


pool = AsyncConnectionPool(DSN, min_size=4, max_size=16, open=False)


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    await pool.open()
    yield
    await pool.close()


app = FastAPI(lifespan=_lifespan)


@app.post("/tasks/")
async def create(body: Create) -> dict[str, Any]:
    """Insert the row, commit, then hand its id to the broker."""
    task_id = uuid.uuid4()
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO peer_tasks (id, status, priority, origin_instance, payload)"
            " VALUES (%s, 'PENDING', %s, %s, %s)",
            [task_id, body.priority, body.origin_instance, body.payload],
        )
    noop.apply_async([str(task_id)])
    return {"id": str(task_id), "status": "PENDING", **body.model_dump()}
