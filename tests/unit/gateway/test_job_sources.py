"""Lists of jobs: what is asked of the surface, and how often."""

from collections.abc import Mapping
from typing import Any, cast

from services.gateway.jobs import sources
from services.gateway.jobs.calls import SurfaceCalls
from services.gateway.jobs.sources import JobQuery

_IDS = [f"00000000-0000-0000-0000-{number:012}" for number in range(4)]


def row(ident: str, status: str, **more: object) -> dict[str, Any]:
    return {"id": ident, "task_type": "NOOP", "status": status, "created_at": f"2026-11-27T{ident[-2:]}", **more}


class Surface:
    """A surface with tasks alone: two failed, one was cancelled, one is done."""

    def __init__(self) -> None:
        self.details: list[str] = []

    async def ask(self, method: str, path: str, query: Mapping[str, object] | None = None) -> Any:
        if path != "/api/v1/monitoring/tasks":
            return [] if path.startswith("/api/v1/training") else {"items": [], "total": 0, "pages": 0}
        states = ("FAILED", "FAILED", "CANCELLED", "COMPLETED")
        rows = [row(ident, state) for ident, state in zip(_IDS, states, strict=True)]
        return {"items": rows, "total": len(rows), "pages": 1}

    async def find(self, path: str) -> Any | None:
        self.details.append(path.rpartition("/")[2])
        return row(self.details[-1], "FAILED", errors=["an earlier one", "no room"])


async def test_only_what_is_shown_of_a_list_is_asked_why_it_failed() -> None:
    surface = Surface()
    calls = cast("SurfaceCalls", surface)
    found = await sources.listed(calls, JobQuery())
    assert (found.total, surface.details) == (4, [])
    shown = await sources.with_reasons(calls, found.jobs[:3])
    assert surface.details == [_IDS[1]]
    assert [(job["job_id"], job["error"]) for job in shown] == [
        (_IDS[3], None),
        (_IDS[2], "cancelled"),
        (_IDS[1], "no room"),
    ]
