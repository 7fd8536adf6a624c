"""What requests to providers have used: one row for each tenant, provider, day and currency.

The same is noted for `usage_days`, which knows more dimensions.
"""

from __future__ import annotations

from datetime import date, datetime

from meshkit.db import Connection
from services.tasks.domain import JobKind, TaskRecord
from services.tasks.providers.domain import ProviderUsage
from services.tasks.service_requests import ServiceRequestNote, ServiceRequestState

# Last in its transaction but for the commit: all requests of a tenant to a provider change this row.
_COUNT = """
WITH noted AS (
    INSERT INTO usage_changes (day, tenant, task_type, provider_type, model, device, currency, attempts,
        failed_attempts, run_seconds, device_seconds, calls, failed_calls, call_seconds, cost)
    VALUES ((%(ended)s::timestamptz AT TIME ZONE 'UTC')::date, %(tenant)s, %(task_type)s, %(provider)s, %(model)s, '',
        %(currency)s, 0, 0, 0, 0, 1, %(failed)s,
        greatest(0, extract(epoch FROM %(ended)s::timestamptz - %(sent)s::timestamptz))::float8, %(cost)s)
)
INSERT INTO provider_usage AS u (tenant, provider_type, day, currency, calls, failed_calls, seconds, cost)
VALUES (%(tenant)s, %(provider)s, (%(ended)s::timestamptz AT TIME ZONE 'UTC')::date, %(currency)s, 1, %(failed)s,
    greatest(0, extract(epoch FROM %(ended)s::timestamptz - %(sent)s::timestamptz))::float8, %(cost)s)
ON CONFLICT (tenant, provider_type, day, currency) DO UPDATE SET
    calls = u.calls + 1, failed_calls = u.failed_calls + excluded.failed_calls,
    seconds = u.seconds + excluded.seconds, cost = u.cost + excluded.cost
"""

_MODEL_CHARS = 255

_USED = """
SELECT tenant, provider_type, day, currency, calls, failed_calls, seconds, cost FROM provider_usage
WHERE day BETWEEN %(first)s AND %(last)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
ORDER BY tenant, provider_type, day, currency
"""


async def count(  # noqa: PLR0917 -- one row's parts
    conn: Connection, record: TaskRecord, provider: str, request: ServiceRequestNote, sent: datetime, ended: datetime
) -> None:
    """Count a request to a provider that has ended, once."""
    await conn.execute(
        _COUNT,
        {
            "tenant": record.tenant,
            "task_type": record.task_type if record.kind == JobKind.TASK else record.kind,
            "model": request.target[:_MODEL_CHARS],
            "provider": provider,
            "currency": (request.currency or "") if request.cost is not None else "",
            "failed": int(request.state is not ServiceRequestState.DONE),
            "cost": request.cost or 0.0,
            "sent": sent,
            "ended": ended,
        },
    )


async def used(conn: Connection, tenant: str | None, first: date, last: date) -> list[ProviderUsage]:
    """Return what was used within days, the first and the last among them; of all tenants where none is named."""
    cursor = await conn.execute(_USED, {"tenant": tenant, "first": first, "last": last})
    return [ProviderUsage(*row) for row in await cursor.fetchall()]
