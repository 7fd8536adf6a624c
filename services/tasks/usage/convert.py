"""Between figures and the messages of usage."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from atelier.tasks.v1 import usage_service_pb2 as pb
from google.api.httpbody_pb2 import HttpBody

from services.tasks.usage.domain import DIMENSIONS, UsageFigures, UsageQuery

_FIGURES = {
    "attempts": "attempts",
    "failed_attempts": "failed_attempts",
    "run_seconds": "run_seconds",
    "device_seconds": "device_seconds",
    "gpu_seconds": "gpu_seconds",
    "cpu_seconds": "cpu_seconds",
    "provider_calls": "calls",
    "failed_provider_calls": "failed_calls",
    "provider_seconds": "call_seconds",
    "costs": "costs",
    "stored_bytes": "bytes",
    "stored_objects": "objects",
}
# What a spreadsheet would take for a formula.
_FORMULAS = ("=", "+", "-", "@")


def to_row(figures: UsageFigures) -> pb.UsageRow:
    """Return a row."""
    row = pb.UsageRow(costs=figures.costs)
    for member, name in _FIGURES.items():
        if member != "costs":
            setattr(row, member, getattr(figures, name))
    for name, value in figures.key.items():
        setattr(row, name, value)
    return row


def to_usage(query: UsageQuery, rows: Sequence[UsageFigures], total: UsageFigures) -> pb.GetUsageResponse:
    """Return what was used."""
    return pb.GetUsageResponse(
        first_day=query.first.isoformat(),
        last_day=query.last.isoformat(),
        group_by=query.by,
        rows=[to_row(row) for row in rows],
        total=to_row(total),
    )


def to_table(query: UsageQuery, rows: Sequence[UsageFigures]) -> HttpBody:
    """Return rows as CSV (RFC 4180); costs are `CURRENCY AMOUNT`, several with a semicolon between them."""
    text = io.StringIO()
    writer = csv.writer(text)
    by = [name for name in DIMENSIONS if name in query.by]
    writer.writerow([*by, *_FIGURES])
    for row in rows:
        writer.writerow(
            [
                *(_plain(row.key[name]) for name in by),
                *(_cell(getattr(row, name)) for name in _FIGURES.values()),
            ]
        )
    return HttpBody(content_type="text/csv; charset=utf-8", data=text.getvalue().encode())


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _cell(value: float | dict[str, float]) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{currency} {cost:.6f}" for currency, cost in sorted(value.items()))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
