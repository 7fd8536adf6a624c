"""The peer of workflows: Celery canvas, its broker on Redis, its results in PostgreSQL.

`celery -A canvas:queue worker` executes; `python canvas.py chain|fan SIZE COUNT` submits and prints when it
began. It runs in an environment of its own (`bench/peer/requirements.lock`) and imports nothing of the mesh.
"""

from __future__ import annotations

import json
import os
import sys
import time

from celery import Celery, chain, group

DSN = os.environ["PEER_DATABASE_URL"]
POLL = float(os.environ["PEER_POLL_SECONDS"])

queue = Celery(
    "canvas",
    broker=os.environ["PEER_BROKER_URL"],
    backend="db+" + DSN.replace("postgresql://", "postgresql+psycopg://", 1),
)
queue.conf.update(
    # Users who do not want to lose a chain with its worker choose this.
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    # A polling task joins a chord on this backend; Celery's own interval is a second.
    result_chord_retry_interval=POLL,
)


@queue.task(name="canvas.noop")
def noop() -> str:
    """Do nothing; the result is a row."""
    return ""


def flow(shape: str, size: int) -> object:
    """Return a chain of `size` steps, or one step, `size` beside each other, and one."""
    if shape == "chain":
        return chain(noop.si() for _ in range(size))
    return chain(noop.si(), group(noop.si() for _ in range(size)), noop.si())


def main() -> None:
    """Submit flows; connections and imports are ready before the clock starts."""
    shape, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with queue.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection()
    begun = time.time()
    for _ in range(count):
        flow(shape, size).apply_async()
    print(json.dumps({"begun": begun, "submitted": time.time()}))


if __name__ == "__main__":
    main()
