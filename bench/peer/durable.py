"""The other peer of workflows: DBOS, a durable-execution library that keeps everything in PostgreSQL.

`python durable.py work NUMBER` is a worker process; `python durable.py chain|fan SIZE COUNT` submits and prints when it
began. A flow is a DBOS workflow on the queue `flows`; each of its steps is a workflow on the queue `steps`, so that any
worker process may take it, as any worker of the mesh may take a task. It runs in an environment of its own
(`bench/peer/requirements-durable.lock`) and imports nothing of the mesh.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from dbos import DBOS, DBOSClient, DBOSConfig

DSN = os.environ["PEER_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
# How often DBOS polls for queued work and for the end of what it waits for; its own interval is a second.
POLL = float(os.environ["PEER_POLL_SECONDS"])
VERSION = "1"


@DBOS.workflow(name="noop")
async def noop() -> str:
    """Do nothing; the result is a row."""
    return ""


async def _step() -> None:
    handle = await DBOS.enqueue_workflow_async("steps", noop)
    await handle.get_result(polling_interval_sec=POLL)


@DBOS.workflow(name="chain")
async def chain(size: int) -> str:
    """Return steps one after the other."""
    for _ in range(size):
        await _step()
    return ""


@DBOS.workflow(name="fan")
async def fan(size: int) -> str:
    """One step, many beside each other, one step."""
    await _step()
    handles = [await DBOS.enqueue_workflow_async("steps", noop) for _ in range(size)]
    for handle in handles:
        await handle.get_result(polling_interval_sec=POLL)
    await _step()
    return ""


def work(number: str) -> None:
    """Execute until SIGTERM."""
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": DSN,
        "application_version": VERSION,
        "executor_id": number,
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    for name in ("flows", "steps"):
        DBOS.register_queue(name, polling_interval_sec=POLL)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    DBOS.destroy()


def submit(shape: str, size: int, count: int) -> None:
    """Enqueue flows; connections and imports are ready before the clock starts."""
    client = DBOSClient(system_database_url=DSN)
    begun = time.time()
    for _ in range(count):
        client.enqueue({"workflow_name": shape, "queue_name": "flows", "app_version": VERSION}, size)
    print(json.dumps({"begun": begun, "submitted": time.time()}))
    client.destroy()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2])
    else:
        submit(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
