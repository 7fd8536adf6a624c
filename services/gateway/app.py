"""The gateway as one ASGI application: routes of the contracts first, then its own few, behind the middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
from meshkit.media_urls import MEDIA_ROUTE
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import HttpError, RefusedRequestError, refused, render
from services.gateway.asgi import misencoded, send_content, send_error
from services.gateway.config import GatewaySettings
from services.gateway.docs import Docs
from services.gateway.endpoints import Transcoder
from services.gateway.health import Health
from services.gateway.jobs.pages import JobPages
from services.gateway.live import sse, system
from services.gateway.live.parts import LiveParts
from services.gateway.live.sockets import EventSockets
from services.gateway.lora_uploads import FORM_BYTES, UPLOADS, LoraUploads
from services.gateway.middleware import ANSWERED, BodyLimit, RequestMiddleware, note_route
from services.gateway.stored_images import IMAGES, StoredImages


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the application is made of.

    Attributes:
        transcoder: Serves the contracts.
        health: Serves `/health`.
        images: Serves stored images; None where there is no object store.
        loras: Takes LoRA files; None where there is no object store or no library.
        live: Serves those who listen to events.
        jobs: Serves `/api/jobs`.
        openapi: The OpenAPI document.
        docs: Serves `/docs`.
    """

    transcoder: Transcoder
    health: Health
    images: StoredImages | None
    loras: LoraUploads | None
    live: LiveParts
    jobs: JobPages
    openapi: dict[str, Any]
    docs: Docs


# What a page of another origin may read of an answer, beside what browsers always show it.
_EXPOSED_HEADERS = (
    "Accept-Ranges",
    "Allow",
    "Content-Range",
    "ETag",
    "Idempotent-Replayed",
    "Preference-Applied",
    "Retry-After",
    "Traceparent",
    "WWW-Authenticate",
    "Warning",
    "X-Request-Id",
)


class BrokenOffError(Exception):
    """Something failed in the middle of an answer."""


class _Dispatch:
    def __init__(self, transcoder: Transcoder, router: Router, sockets: EventSockets) -> None:
        self._transcoder = transcoder
        self._sockets = sockets
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a WebSocket: there is no lifespan
            await self._sockets.serve(scope, receive, send)
            return
        part = misencoded(scope)
        if part:
            found = [Violation((part,), "must be UTF-8, percent-encoded", "string_unicode")]
            await send_error(scope, send, refused(found))
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
        HttpRoute(system.EVENTS_ROUTE, parts.live.pages.events),
        HttpRoute(system.HEALTH_ROUTE, parts.live.pages.health),
        HttpRoute(sse.ROUTE, _Raw(parts.live.stream), methods=["GET"]),
        *parts.jobs.routes(),
    ]
    if parts.images is not None:
        images = parts.images
        routes += [
            HttpRoute(IMAGES, images.list_images, methods=["GET"]),
            HttpRoute(f"{IMAGES}/{{path:anypath}}", _by_method(images), methods=["GET", "HEAD", "POST", "DELETE"]),
            HttpRoute(f"{MEDIA_ROUTE}/{{token}}", images.get_media, methods=["GET", "HEAD"]),
        ]
    larger: dict[str, int] = {}
    if parts.loras is not None:
        routes += [HttpRoute(path, parts.loras.upload, methods=["POST"]) for path in UPLOADS]
        larger = dict.fromkeys(UPLOADS, settings.max_lora_bytes + FORM_BYTES)
    app: ASGIApp = _Dispatch(
        parts.transcoder, Router(routes, redirect_slashes=False, default=_not_found), parts.live.sockets
    )
    app = BodyLimit(app, max_bytes=settings.max_body_bytes, elsewhere=larger)
    app = RequestMiddleware(app)
    if settings.cors_origins:
        # Outermost, so that a page may read every answer, that to a fault included.
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            # Whatever libraries add: a request proves itself by its token, never by cookies.
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
            max_age=600,
        )
    return app


class _Raw:
    """A plain ASGI endpoint; a class, because the router takes functions for request handlers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _by_method(images: StoredImages) -> Callable[[Request], Awaitable[Response]]:
    handlers = {"POST": images.save_image, "DELETE": images.delete_image}

    async def handle(request: Request) -> Response:
        return await handlers.get(request.method, images.get_image)(request)

    return handle
