"""The endpoints of `/api/jobs`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import HttpError, RefusedRequestError
from services.gateway.asgi import JsonResponse, header, read_beginning
from services.gateway.auth import Authenticator
from services.gateway.endpoints import Transcoder
from services.gateway.jobs import sources
from services.gateway.jobs.calls import JobCallError, SurfaceCalls
from services.gateway.jobs.reading import RUNNING, STATUSES, TRAINING, WORKFLOW, history_of, log_of, status_of
from services.gateway.jobs.sources import JobQuery, OneJob
from services.gateway.middleware import note_route

JOBS = "/api/jobs"
MOST = 100
MOST_OFFSET = 1000
_SEARCH_CHARS = 255
# Three times what as many ids take.
_BULK_BYTES = 16 * 1024

Answer = Callable[[SurfaceCalls, Request], Awaitable[Any]]


class JobPages:
    """The endpoints.

    Args:
        guard: Checks tokens.
        transcoder: Serves the surface that jobs are read from.
    """

    def __init__(self, guard: Authenticator, transcoder: Transcoder) -> None:
        self._guard = guard
        self._transcoder = transcoder

    def routes(self) -> list[HttpRoute]:
        """Return the routes; literal ones first."""
        answers: list[tuple[str, str, str, Answer]] = [
            ("GET", "", "read", _list),
            ("GET", "/types", "read", _types),
            ("GET", "/stats", "read", _stats),
            ("GET", "/search", "read", _search),
            ("POST", "/bulk-cancel", "write", _bulk_cancel),
            ("GET", "/{job_id}/detail", "read", _detail),
            ("GET", "/{job_id}/history", "read", _history),
            ("GET", "/{job_id}/logs", "read", _logs),
            ("POST", "/{job_id}/cancel", "write", _cancel),
            ("POST", "/{job_id}/abort", "write", _abort),
        ]
        routes = [
            HttpRoute(f"{JOBS}{path}", self._endpoint(f"{method} {JOBS}{path}", scope, answer), methods=[method])
            for method, path, scope, answer in answers
        ]
        one = self._endpoint(f"GET {JOBS}/{{job_id}}", "read", _one)
        gone = self._endpoint(f"DELETE {JOBS}/{{job_id}}", "write", _delete)

        async def by_method(request: Request) -> Response:
            return await (gone if request.method == "DELETE" else one)(request)

        return [*routes, HttpRoute(f"{JOBS}/{{job_id}}", by_method, methods=["GET", "DELETE"])]

    async def log(self, authorization: str, job_id: str) -> list[dict[str, Any]]:
        """Return what happened to a job, as lines of a log.

        Raises:
            JobCallError: There is no such job of the caller's tenant.
        """
        calls = SurfaceCalls(self._transcoder, authorization)
        found = await sources.find(calls, job_id)
        return log_of(history_of(found.job, await sources.attempts(calls, found)))

    def _endpoint(self, name: str, scope: str, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            note_route(request.scope, name)
            await self._guard.admit(header(request.scope, b"authorization"), scope)
            try:
                return JsonResponse(await answer(SurfaceCalls.of(self._transcoder, request.scope), request))
            except JobCallError as error:
                return JsonResponse(error.error.body, error.error.status, error.error.headers)

        return serve


def id_of(request: Request) -> str:
    """Return the id in a path.

    Raises:
        RefusedRequestError: It is no UUID.
    """
    return _uuid(request.path_params["job_id"], ("path", "job_id"))


def _uuid(text: object, place: tuple[str | int, ...]) -> str:
    try:
        return str(UUID(str(text)))
    except ValueError:
        raise RefusedRequestError([Violation(place, "should be a valid UUID", "uuid_parsing")]) from None


def _whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or not least <= int(text) <= most:
        message = f"should be a whole number from {least} to {most}"
        raise RefusedRequestError([Violation(("query", name), message, "int_parsing")])
    return int(text)


async def _page(calls: SurfaceCalls, request: Request, search: str) -> dict[str, Any]:
    limit, offset = _whole(request, "limit", 50, 1, MOST), _whole(request, "offset", 0, 0, MOST_OFFSET)
    status, job_type = request.query_params.get("status", ""), request.query_params.get("job_type", "")
    if status and status not in STATUSES:
        message = f"should be one of {', '.join(STATUSES)}"
        raise RefusedRequestError([Violation(("query", "status"), message, "enum")])
    try:
        found = await sources.listed(calls, JobQuery(job_type, status, search, offset + limit))
    except JobCallError as error:
        if error.error.status != 422 or not job_type:
            raise
        message = "should be a type of task, `WORKFLOW` or `TRAINING`"
        raise RefusedRequestError([Violation(("query", "job_type"), message, "enum")]) from None
    items = await sources.with_reasons(calls, found.jobs[offset:])
    return {
        "items": items,
        "pagination": {
            "total": found.total,
            "limit": limit,
            "offset": offset,
            "items_count": len(items),
            "has_more": offset + len(items) < found.total,
        },
    }


async def _list(calls: SurfaceCalls, request: Request) -> Any:
    return await _page(calls, request, "")


async def _search(calls: SurfaceCalls, request: Request) -> Any:
    sought = request.query_params.get("q", "").strip()
    if not sought or len(sought) > _SEARCH_CHARS:
        message = f"should have 1 to {_SEARCH_CHARS} characters: the beginning of an id, or a workflow's name"
        raise RefusedRequestError([Violation(("query", "q"), message, "value_error")])
    return await _page(calls, request, sought)


async def _known_types(calls: SurfaceCalls) -> list[str]:
    catalog = await calls.find("/api/v1/catalog")
    return [*sorted(catalog["task_types"] if catalog else ()), TRAINING, WORKFLOW]


async def _types(calls: SurfaceCalls, _request: Request) -> Any:
    return {"job_types": await _known_types(calls)}


async def _stats(calls: SurfaceCalls, _request: Request) -> Any:
    tasks, workflows, trainings = await asyncio.gather(
        calls.find("/api/v1/monitoring/stats"),
        calls.find("/api/v1/monitoring/workflows/stats"),
        sources.listed(calls, JobQuery(job_type=TRAINING, most=1000)),
    )
    by_status = dict.fromkeys(STATUSES, 0)
    by_type: dict[str, int] = dict(tasks["by_task_type"]) if tasks else {}
    for figures in (tasks, workflows):
        for state, count in (figures["by_status"] if figures else {}).items():
            by_status[status_of(state)] += count
    if workflows and workflows["total_workflows"]:
        by_type[WORKFLOW] = workflows["total_workflows"]
    for job in trainings.jobs:
        by_status[job["status"]] += 1
    if trainings.total:
        by_type[TRAINING] = trainings.total
    return {"total": sum(by_status.values()), "by_status": by_status, "by_type": by_type}


async def _one(calls: SurfaceCalls, request: Request) -> Any:
    return (await sources.find(calls, id_of(request))).job


async def _detail(calls: SurfaceCalls, request: Request) -> Any:
    found = await sources.find(calls, id_of(request))
    return {**found.job, "kind": found.kind.name, "detail": found.row}


async def _happened(calls: SurfaceCalls, request: Request) -> tuple[OneJob, list[dict[str, Any]]]:
    found = await sources.find(calls, id_of(request))
    return found, history_of(found.job, await sources.attempts(calls, found))


async def _history(calls: SurfaceCalls, request: Request) -> Any:
    found, history = await _happened(calls, request)
    return {"job_id": found.job["job_id"], "job_type": found.job["job_type"], "history": history}


async def _logs(calls: SurfaceCalls, request: Request) -> Any:
    found, history = await _happened(calls, request)
    return {"job_id": found.job["job_id"], "logs": log_of(history), "total": len(history)}


async def _cancelled(calls: SurfaceCalls, found: OneJob) -> Mapping[str, Any]:
    method, path = found.kind.cancel
    job_id = found.job["job_id"]
    await calls.ask(method, path.format(job_id))
    return (await sources.find(calls, job_id)).job


async def _cancel(calls: SurfaceCalls, request: Request) -> Any:
    return await _cancelled(calls, await sources.find(calls, id_of(request)))


async def _abort(calls: SurfaceCalls, request: Request) -> Any:
    found = await sources.find(calls, id_of(request))
    if found.job["status"] != RUNNING:
        raise JobCallError(HttpError(409, f"Job {found.job['job_id']} does not run: it is {found.job['status']}"))
    return await _cancelled(calls, found)


async def _bulk_cancel(calls: SurfaceCalls, request: Request) -> Any:
    body, is_whole = await read_beginning(request.receive, _BULK_BYTES)
    if not is_whole or len(body) > _BULK_BYTES:
        raise RefusedRequestError([Violation(("body",), f"should have at most {_BULK_BYTES} bytes", "too_long")])
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RefusedRequestError([Violation(("body",), "JSON decode error", "json_invalid")]) from None
    ids = asked.get("job_ids") if isinstance(asked, dict) else None
    if not isinstance(ids, list) or not 1 <= len(ids) <= MOST:
        raise RefusedRequestError([Violation(("body", "job_ids"), f"should be a list of 1 to {MOST} ids", "list_type")])
    wanted = dict.fromkeys(_uuid(one, ("body", "job_ids", index)) for index, one in enumerate(ids))
    cancelled, failed = [], []
    for job_id in wanted:
        try:
            await _cancelled(calls, await sources.find(calls, job_id))
        except JobCallError as error:
            failed.append({"job_id": job_id, "status": error.error.status, "error": str(error.error.detail)})
        else:
            cancelled.append(job_id)
    return {"cancelled": cancelled, "failed": failed}


async def _delete(calls: SurfaceCalls, request: Request) -> Any:
    found = await sources.find(calls, id_of(request))
    job_id = found.job["job_id"]
    method, path = found.kind.delete
    await calls.ask(method, path.format(job_id))
    return {"deleted": True, "job_id": job_id}
