"""The gateway as one ASGI application: routes of the contracts first, then its own few, behind the middleware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from meshkit.errors import MeshError
from meshkit.transcoding.errors import HttpError, RefusedRequestError, refused, render
from services.gateway.asgi import send_content, send_error
from services.gateway.config import GatewaySettings
from services.gateway.docs import Docs
from services.gateway.endpoints import Transcoder
from services.gateway.middleware import ANSWERED, BodyLimit, RequestMiddleware, note_route
from services.gateway.storage import IMAGES, MEDIA, JsonResponse, Storage

HEALTHY, UNHEALTHY = "healthy", "unhealthy"
_PROBE_SECONDS = 2.0
_PROBE_KEPT_SECONDS = 1.0

Probe = Callable[[float], Awaitable[None]]


class Health:
    """Whether the services behind the gateway answer.

    Args:
        probes: Asks a service, within so many seconds; raises `MeshError` where it does not answer.
        version: Version of the mesh.
    """

    def __init__(self, probes: Mapping[str, Probe], version: str) -> None:
        self._probes = probes
        self._version = version
        self._checked = float("-inf")
        self._states: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def states(self) -> dict[str, str]:
        """Return the state of every service, at most a second old."""
        async with self._lock:
            if time.monotonic() - self._checked > _PROBE_KEPT_SECONDS:
                names = list(self._probes)
                found = await asyncio.gather(*(self._ask(self._probes[name]) for name in names))
                self._states = dict(zip(names, found, strict=True))
                self._checked = time.monotonic()
        return self._states

    @staticmethod
    async def _ask(probe: Probe) -> str:
        try:
            await probe(_PROBE_SECONDS)
        except MeshError:
            return UNHEALTHY
        return HEALTHY

    async def answer(self, request: Request) -> Response:
        """Answer `GET /health`."""
        note_route(request.scope, "GET /health")
        states = await self.states()
        status = HEALTHY if all(one == HEALTHY for one in states.values()) else UNHEALTHY
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = {"status": status, "version": self._version, "services": states, "timestamp": now}
        return JsonResponse(body, 200 if status == HEALTHY else 503, {"cache-control": "no-store"})

    @staticmethod
    async def alive(request: Request) -> Response:
        """Answer `GET /health/live`: the process itself, whatever is behind it."""
        note_route(request.scope, "GET /health/live")
        return JsonResponse({"status": HEALTHY})


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the application is made of.

    Attributes:
        transcoder: Serves the contracts.
        health: Serves `/health`.
        storage: Serves stored images; None where there is no object store.
        openapi: The OpenAPI document.
        docs: Serves `/docs`.
    """

    transcoder: Transcoder
    health: Health
    storage: Storage | None
    openapi: dict[str, Any]
    docs: Docs


class BrokenOffError(Exception):
    """Something failed in the middle of an answer."""


class _Dispatch:
    def __init__(self, transcoder: Transcoder, router: Router) -> None:
        self._transcoder = transcoder
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answering = self._transcoder.serve(scope, receive, send)
        if answering is not None:
            await answering
            return
        # With and without a trailing slash, as the routes of the contracts.
        if scope["path"].endswith("/") and not _names_an_image(scope):
            scope["path"] = scope["path"].rstrip("/") or "/"
        scope["app"] = self  # makes the router raise its 405 instead of answering it in plain text
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            answer = HttpError(error.status_code, error.detail, dict(error.headers or {}))
        except RefusedRequestError as error:
            answer = refused(error.violations)
        except MeshError as error:
            answer = render(error)
        else:
            return
        if scope.get(ANSWERED):
            # Only breaking the connection off tells the caller that what it got is not whole.
            raise BrokenOffError(str(answer.detail))
        # Sent here, inside of the CORS middleware, so that a page may read why it was refused.
        await send_error(scope, send, answer)


def _names_an_image(scope: Scope) -> bool:
    # Only a list is the same with and without the slash; for the rest what follows it is a path, be it an empty one.
    return bool(scope["path"].startswith(f"{IMAGES}/") and scope["method"] in {"POST", "DELETE", "HEAD"})


class _AnyPath(Convertor[str]):
    """A rest of a path, line breaks included: what is wrong with it is said by the endpoint."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anypath", _AnyPath())


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- ASGI's signature
    await send_error(scope, send, HttpError(404, "Not Found"))


def create_app(parts: GatewayParts, settings: GatewaySettings) -> ASGIApp:
    """Return the application."""
    document = orjson.dumps(parts.openapi)

    async def openapi(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- ASGI's signature
        note_route(scope, "GET /openapi.json")
        await send_content(scope, send, document, gzip_min_bytes=settings.gzip_min_bytes)

    routes = [
        HttpRoute("/health", parts.health.answer),
        HttpRoute("/health/live", parts.health.alive),
        HttpRoute("/openapi.json", _Raw(openapi)),
        HttpRoute("/", parts.docs.home),
        HttpRoute("/docs", parts.docs.page),
        HttpRoute("/docs/{name}", parts.docs.asset),
    ]
    if parts.storage is not None:
        storage = parts.storage
        routes += [
            HttpRoute(IMAGES, storage.list_images, methods=["GET"]),
            HttpRoute(f"{IMAGES}/{{path:anypath}}", _by_method(storage), methods=["GET", "HEAD", "POST", "DELETE"]),
            HttpRoute(f"{MEDIA}/{{token}}", storage.get_media, methods=["GET", "HEAD"]),
        ]
    app: ASGIApp = _Dispatch(parts.transcoder, Router(routes, redirect_slashes=False, default=_not_found))
    app = BodyLimit(app, max_bytes=settings.max_body_bytes)
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "Last-Event-ID",
                "Prefer",
                "X-Request-Id",
            ],
            expose_headers=["X-Request-Id", "Idempotent-Replayed", "ETag", "Content-Range", "Retry-After"],
            max_age=600,
        )
    return RequestMiddleware(app)


class _Raw:
    """A plain ASGI endpoint; a class, because the router takes functions for request handlers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _by_method(storage: Storage) -> Callable[[Request], Awaitable[Response]]:
    handlers = {"POST": storage.save_image, "DELETE": storage.delete_image}

    async def handle(request: Request) -> Response:
        return await handlers.get(request.method, storage.get_image)(request)

    return handle
