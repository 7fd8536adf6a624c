"""The three kinds of jobs: where the surface lists them, and how it tells, cancels and deletes one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshkit.transcoding.errors import HttpError
from services.gateway.jobs.calls import JobCallError, SurfaceCalls
from services.gateway.jobs.reading import (
    FAILED,
    TRAINING,
    UNTOLD,
    WORKFLOW,
    Job,
    Row,
    of_task,
    of_training,
    of_workflow,
    states_of,
)

_PAGE = 100
# Trainings have no list by filters: these are the newest, and more than a tenant has.
_MOST_TRAININGS = 1000
_TASK_STATES = ("PENDING", "EXECUTING", "COMPLETED", "FAILED", "CANCELLED")
_WORKFLOW_STATES = ("PENDING", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs are asked for.

    Attributes:
        job_type: Only of this type.
        status: Only of this status.
        search: Only those whose id begins so, and workflows of such a name.
        most: How many, the newest first.
    """

    job_type: str = ""
    status: str = ""
    search: str = ""
    most: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """Jobs of one query.

    Attributes:
        jobs: The newest of them.
        total: How many there are.
    """

    jobs: Sequence[Job]
    total: int


@dataclass(frozen=True, slots=True)
class JobSource:
    """One kind of jobs.

    Attributes:
        name: What it is called where the owner's resource is meant.
        detail: Path of one, with `{}` for its id.
        job: Reads one.
        listed: Lists them.
        cancel: Method and path that cancel one.
        delete: Method and path that delete one.
    """

    name: str
    detail: str
    job: Callable[[Row], Job]
    listed: Callable[[SurfaceCalls, JobQuery], Awaitable[Found]]
    cancel: tuple[str, str]
    delete: tuple[str, str]


async def _tasks(calls: SurfaceCalls, query: JobQuery) -> Found:
    if query.job_type in {WORKFLOW, TRAINING}:
        return Found((), 0)
    more = {"task_type": query.job_type} if query.job_type else {}
    rows, total = await _monitored(calls, "tasks", query, _TASK_STATES, more)
    return Found([of_task(row) for row in rows], total)


async def _workflows(calls: SurfaceCalls, query: JobQuery) -> Found:
    if query.job_type not in {"", WORKFLOW}:
        return Found((), 0)
    rows, total = await _monitored(calls, "workflows", query, _WORKFLOW_STATES, {})
    return Found([of_workflow(row) for row in rows], total)


async def _trainings(calls: SurfaceCalls, query: JobQuery) -> Found:
    if query.job_type not in {"", TRAINING}:
        return Found((), 0)
    try:
        rows = await calls.ask("GET", "/api/v1/training/", {"limit": _MOST_TRAININGS})
    except JobCallError as error:
        if error.error.status == 404:  # a mesh without trainings
            return Found((), 0)
        raise
    jobs = [of_training(row) for row in rows]
    sought = query.search.lower().replace("-", "")
    kept = [
        job for job in jobs if query.status in {"", job["status"]} and job["job_id"].replace("-", "").startswith(sought)
    ]
    return Found(kept[: query.most], len(kept))


async def _monitored(
    calls: SurfaceCalls, name: str, query: JobQuery, states: Sequence[str], more: Mapping[str, object]
) -> tuple[list[Row], int]:
    """Return the newest rows of a list of monitoring, and how many there are; one list for each state that counts."""
    wanted: Sequence[str] = states_of(query.status, states) if query.status else ("",)
    lists = await asyncio.gather(*(_pages(calls, name, query, state, more) for state in wanted))
    rows = sorted((row for listed, _ in lists for row in listed), key=_newest, reverse=True)
    return rows[: query.most], sum(total for _, total in lists)


async def _pages(
    calls: SurfaceCalls, name: str, query: JobQuery, state: str, more: Mapping[str, object]
) -> tuple[list[Row], int]:
    filters: dict[str, object] = {"page_size": min(_PAGE, query.most), **more}
    filters |= {"status": state} if state else {}
    filters |= {"search": query.search} if query.search else {}
    rows: list[Row] = []
    page = 1
    while True:
        try:
            answer = await calls.ask("GET", f"/api/v1/monitoring/{name}", {**filters, "page": page})
        except JobCallError as error:
            if error.error.status == 404:  # a mesh without them
                return [], 0
            raise
        rows += answer["items"]
        if len(rows) >= query.most or page >= answer["pages"]:
            return rows, int(answer["total"])
        page += 1


def _newest(row: Row) -> tuple[str, str]:
    return row["created_at"], row["id"]


KINDS = (
    JobSource(
        "task",
        "/api/v1/monitoring/tasks/{}",
        of_task,
        _tasks,
        ("POST", "/api/v1/tasks/{}/cancel"),
        ("DELETE", "/api/v1/tasks/{}"),
    ),
    JobSource(
        "workflow",
        "/api/v1/monitoring/workflows/{}",
        of_workflow,
        _workflows,
        ("DELETE", "/api/v1/workflows/{}"),
        ("POST", "/api/v1/workflows/{}/cleanup"),
    ),
    JobSource(
        "training",
        "/api/v1/training/{}",
        of_training,
        _trainings,
        ("POST", "/api/v1/training/{}/cancel"),
        ("DELETE", "/api/v1/training/{}"),
    ),
)


_OF_TASKS, _OF_WORKFLOWS, _ = KINDS


@dataclass(frozen=True, slots=True)
class OneJob:
    """A job that exists.

    Attributes:
        kind: What it is.
        row: What its owner says of it.
        job: The same as a job.
    """

    kind: JobSource
    row: Row
    job: Job


async def find(calls: SurfaceCalls, job_id: str) -> OneJob:
    """Return a job.

    Raises:
        JobCallError: There is none of the caller's tenant.
    """
    rows = await asyncio.gather(*(calls.find(kind.detail.format(job_id)) for kind in KINDS))
    for kind, row in zip(KINDS, rows, strict=True):
        if row is not None:
            return OneJob(kind, row, kind.job(row))
    raise JobCallError(HttpError(404, f"Job {job_id} not found"))


async def listed(calls: SurfaceCalls, query: JobQuery) -> Found:
    """Return jobs of every kind, the newest first."""
    found = await asyncio.gather(*(kind.listed(calls, query) for kind in KINDS))
    jobs = sorted((job for one in found for job in one.jobs), key=lambda job: _newest({**job, "id": job["job_id"]}))
    return Found(jobs[::-1][: query.most], sum(one.total for one in found))


async def with_reasons(calls: SurfaceCalls, jobs: Sequence[Job]) -> list[Job]:
    """Return jobs with why they failed: lists of tasks and workflows do not tell, so that each is asked for.

    Args:
        calls: The caller's.
        jobs: What is shown of a list; few.
    """

    async def told(job: Job) -> Job:
        if job["error"] != UNTOLD or job["job_type"] == TRAINING:
            return job
        kind = _OF_WORKFLOWS if job["job_type"] == WORKFLOW else _OF_TASKS
        row = await calls.find(kind.detail.format(job["job_id"]))
        return job if row is None else kind.job(row)

    return list(await asyncio.gather(*(told(job) for job in jobs)))


async def attempts(calls: SurfaceCalls, found: OneJob) -> list[Row]:
    """Return the attempts at a job; none where it is no task."""
    if found.kind.name != "task":
        return []
    answer: Any = await calls.find(f"/api/v1/tasks/{found.job['job_id']}/attempts")
    rows: list[Row] = answer["attempts"] if answer else []
    return rows


def ended(found: OneJob) -> bool:
    """Tell whether a job has ended."""
    return found.job["status"] in {"completed", FAILED}
