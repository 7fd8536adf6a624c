"""The row that compares the cost of a create and of a delivery with few deliveries waiting and with many."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.abuse.other import OtherTenant
from bench.abuse.rows import GREEDY, Abuse, row

FEW, MANY = 10, 100_000
_ROUNDS = 4
_PROBES = 15
_FILL = """
INSERT INTO tasks.webhook_deliveries
    (id, tenant, entity_id, entity_version, event_type, url, target, body, status, created_at, due_at)
SELECT gen_random_uuid(), %s, gen_random_uuid(), 1, 'task_completed', 'http://' || target || '/', target, '{}',
    'PENDING', now(), now()
FROM generate_series(1, %s) n, LATERAL (SELECT '127.0.0.1:' || (%s::integer[])[1 + n %% %s] AS target) receiver
"""


@row("deliveries to 80 hanging ports wait: 10, then 100,000, four times in turn", probe="webhook")
def backlog(abuse: Abuse) -> None:
    """Compare creates, and ways from a create to its webhook, of the other tenant."""
    few, many = (_caller(abuse.other) for _ in range(2))
    for _ in range(_ROUNDS):
        for count, caller in ((FEW, few), (MANY, many)):
            _wait(abuse, count)
            for _ in range(_PROBES):
                caller.once("webhook")
    _wait(abuse, 0)
    abuse.found += [
        f"create {_ms(few.creates)} and {_ms(many.creates)} ms",
        f"create to webhook {_ms(few.waits)} and {_ms(many.waits)} ms",
    ]
    for caller in (few, many):
        abuse.wrong += [f"{count} probes: {what}" for what, count in caller.failures.items()]
    for what, before, after in (("creates", few.creates, many.creates), ("deliveries", few.waits, many.waits)):
        if statistics.median(after) > 2 * statistics.median(before):
            abuse.wrong.append(f"{what} cost more")


def _wait(abuse: Abuse, count: int) -> None:
    """Have so many deliveries of the greedy tenant wait."""
    ports = abuse.peers.hanging
    with abuse.mesh.database() as connection:
        connection.execute("DELETE FROM tasks.webhook_deliveries WHERE tenant = %s", (GREEDY,))
        connection.execute(_FILL, (GREEDY, count, ports, len(ports)))


def _caller(other: OtherTenant) -> OtherTenant:
    return OtherTenant(other.url, other.headers, other.hook, other.arrived)


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}"
