"""Requests on routes of the contracts: decoded, forwarded as RPCs, and their answers encoded.

One `Endpoint` a route, built at start. Nothing here knows which service or resource it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.message import Message
from starlette.types import Receive, Scope, Send

from meshkit import tracing
from meshkit.answers import OTHER_STATUS_KEY
from meshkit.client import MeshStream, call_metadata
from meshkit.errors import MeshError
from meshkit.estimates import ESTIMATED_KEY
from meshkit.idempotency import REPLAYED_KEY
from meshkit.quotas import TenantShare
from meshkit.scopes import scope_name
from meshkit.staging import STAGING_SCHEME
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding, Loc, Violation
from meshkit.transcoding.elements import has_more_elements
from meshkit.transcoding.errors import HttpError, RefusedRequestError, refused, render
from meshkit.transcoding.requests import RequestDecoder, ResponseEncoder
from meshkit.transcoding.routes import Match, Route, RouteTable, WrongMethod, loc_of
from services.gateway.asgi import header, read_body, send_content, send_error, strict
from services.gateway.auth import Authenticator, GatewayCaller
from services.gateway.bodies import BodyBudget, SlowRequestError
from services.gateway.config import GatewaySettings
from services.gateway.middleware import note_route
from services.gateway.staging import StagedFiles, UploadStager
from services.gateway.streams import AFTER_VERSION, EventStream, event_shape

_MAX_QUERY_FIELDS = 200
_FILE_POLICY = "default-src 'none'; sandbox"
# What a service says of its answer in trailing metadata, and the gateway in headers of the same names.
_TOLD = frozenset({REPLAYED_KEY, ESTIMATED_KEY, OTHER_STATUS_KEY})
# Several files of one step would else pass the bound of its `config` together.
_HELD_CHARS = 8192
_MAX_VERSION = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class EndpointContext:
    """What every endpoint works with.

    Attributes:
        settings: Settings of the gateway.
        guard: Checks tokens.
        uploads: Takes large files; None where there is no object store, and they then go through the RPC.
        bodies: Bounds how much of large bodies is held at once.
        calls: How many requests a tenant has under way at once.
        streams: How many of them are streams.
        stopping: Set when the process ends.
    """

    settings: GatewaySettings
    guard: Authenticator
    uploads: UploadStager | None
    bodies: BodyBudget
    calls: TenantShare
    streams: TenantShare
    stopping: asyncio.Event


class Endpoint:
    """One route, ready to serve.

    Args:
        route: The route.
        codecs: Shared codecs.
        call: The RPC on a channel to the service that answers.
        context: What every endpoint works with.
    """

    def __init__(self, route: Route, codecs: Codecs, call: Callable[..., Any], context: EndpointContext) -> None:
        self._route = route
        self._decoder = RequestDecoder(route, codecs)
        self._encoder = ResponseEncoder(route, codecs)
        self._call = call
        self._context = context
        self._scope = scope_name(route.rule.scope)
        self._idempotent = route.rule.idempotent
        self._shape = event_shape(route.response) if route.streaming else None
        self._resumes = route.streaming and AFTER_VERSION in route.request.fields_by_name
        self._loc_of = partial(loc_of, route)
        self._threshold = context.settings.upload_threshold_bytes if context.uploads is not None else 1 << 62

    async def serve(self, scope: Scope, receive: Receive, send: Send, values: tuple[str, ...]) -> None:
        """Answer one request."""
        note_route(scope, self._route.name)
        bodies = self._context.bodies
        try:
            caller = await self._context.guard.admit(header(scope, b"authorization"), self._scope)
            counted = self._count_call(caller.principal.tenant)
            try:
                if not self._decoder.has_body:
                    await self._answer(scope, receive, send, self._decode(scope, values, b""), caller)
                elif bodies.is_free(scope):
                    read = self._decode(scope, values, await read_body(receive))
                    await self._answer(scope, receive, send, read, caller)
                else:
                    async with bodies.content(scope, receive) as content:
                        await self._count(content)
                        read = self._decode(scope, values, content)
                        del content  # the answer may take its time, and needs it no more
                        await self._answer(scope, receive, send, read, caller)
            finally:
                for share in counted:
                    share.leave(caller.principal.tenant)
        except RefusedRequestError as error:
            await send_error(scope, send, refused(error.violations))
        except SlowRequestError as error:
            await send_error(scope, send, _too_slow(error))
        except MeshError as error:
            await send_error(scope, send, self._render(error))

    def _count_call(self, tenant: str) -> Sequence[TenantShare]:
        """Count a request of a tenant; the caller leaves what is returned once it is answered.

        Every request comes here, and context managers would cost each of them more than the counting.
        """
        if not tenant:
            return ()
        calls, streams = self._context.calls, self._context.streams
        calls.enter(tenant)
        if self._shape is None:
            return (calls,)
        try:
            streams.enter(tenant)
        except MeshError:
            calls.leave(tenant)
            raise
        return (streams, calls)

    async def _count(self, content: bytes) -> None:
        """Refuse content of so many elements that others would wait while it is parsed."""
        most = self._context.settings.max_body_elements
        if await asyncio.to_thread(has_more_elements, content, most):
            text = f"The request's content should have at most {most} members and items in all"
            raise RefusedRequestError([Violation(("body",), text, "too_long")])

    def _decode(self, scope: Scope, values: tuple[str, ...], content: bytes) -> tuple[Message, Decoding]:
        decoding = Decoding(
            strict=strict(scope),
            upload_threshold=self._threshold,
            held_threshold=min(self._threshold, _HELD_CHARS) if self._context.uploads is not None else self._threshold,
            free_form=self._context.settings.free_form_limits,
        )
        return self._decoder.decode(values, _query(scope), content, decoding), decoding

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, read: tuple[Message, Decoding], caller: GatewayCaller
    ) -> None:
        request, decoding = read
        key = self._idempotency_key(scope)
        metadata = self._metadata(caller, key)
        if self._shape is not None:
            await self._stream(scope, receive, send, request, metadata)
            return
        if not decoding.uploads:
            response, headers = await self._ask(request, metadata)
        else:
            async with self._staged(caller, request, decoding, key) as stay:
                response, headers = await self._ask(request, metadata)
                # The first of them took its files long ago.
                stay.unclaimed = REPLAYED_KEY in headers
        status = 200 if headers.pop(OTHER_STATUS_KEY, None) is None else self._route.rule.other_status or 200
        if decoding.strict:
            headers["preference-applied"] = "handling=strict"
        elif warning := decoding.unknown.warning():
            headers["warning"] = warning
        content = self._encoder.encode(response)
        gzip_min_bytes = self._context.settings.gzip_min_bytes
        if media_type := self._encoder.media_type(response):
            # A drawing may be opened as a page of this address: it shall do nothing there.
            headers["content-security-policy"] = _FILE_POLICY
            await send_content(
                scope,
                send,
                content,
                content_type=media_type.encode("latin-1"),
                headers=headers,
                gzip_min_bytes=gzip_min_bytes if media_type == "image/svg+xml" else len(content),
            )
            return
        await send_content(scope, send, content, status=status, headers=headers, gzip_min_bytes=gzip_min_bytes)

    def _render(self, error: MeshError) -> HttpError:
        return render(error, self._place)

    def _place(self, path: str) -> Loc:
        return ("header", "Idempotency-Key") if path == "idempotency-key" else self._loc_of(path)

    def _idempotency_key(self, scope: Scope) -> str:
        if not self._idempotent:
            return ""
        key = header(scope, b"idempotency-key")
        if len(key) > 255 or any(not "!" <= one <= "~" for one in key):
            text = "must have 1 to 255 printable ASCII characters without spaces"
            raise RefusedRequestError([Violation(("header", "Idempotency-Key"), text, "value_error")])
        return key

    @staticmethod
    def _metadata(caller: GatewayCaller, key: str) -> Sequence[tuple[str, str]]:
        trace = tracing.current()
        if trace is None:
            return call_metadata(token=caller.token, idempotency_key=key or None)
        # The service calls the request by its trace as well, where its caller gave it no other name.
        named = trace.request_id if trace.request_id != trace.trace_id else None
        return call_metadata(
            token=caller.token, idempotency_key=key or None, request_id=named, traceparent=trace.traceparent
        )

    def _staged(
        self, caller: GatewayCaller, request: Message, decoding: Decoding, key: str
    ) -> AbstractAsyncContextManager[StagedFiles]:
        from meshkit.validation import apply_defaults, check  # noqa: PLC0415 -- protovalidate takes a second to load

        assert self._context.uploads is not None
        # Hold the rest of the request to its rules first, so that one that is refused leaves nothing behind.
        for upload in decoding.uploads:
            upload.replace(STAGING_SCHEME)
        probe = type(request)()
        probe.CopyFrom(request)
        apply_defaults(probe)
        check(probe, self._context.settings.free_form_limits)
        rest = request.SerializeToString(deterministic=True)
        return self._context.uploads.staged(caller.tenant, decoding.uploads, key=key, request=rest)

    async def _ask(self, request: Message, metadata: Sequence[tuple[str, str]]) -> tuple[Message, dict[str, str]]:
        """Make the call; return its answer, and what the service says of it in headers."""
        headers: dict[str, str] = {}

        def on_trailing(pairs: Sequence[tuple[str, str | bytes]]) -> None:
            headers.update({name: "true" for name, _ in pairs if name in _TOLD})

        response = await self._call(
            request, timeout=self._context.settings.rpc_timeout_seconds, metadata=metadata, trailing=on_trailing
        )
        return response, headers

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, request: Any, metadata: Sequence[tuple[str, str]]
    ) -> None:
        assert self._shape is not None
        last = header(scope, b"last-event-id")
        if self._resumes and last.isdecimal() and last.isascii() and int(last) <= _MAX_VERSION:
            setattr(request, AFTER_VERSION, int(last))

        def begin(after: int | None) -> MeshStream[Message]:
            if after is not None:
                setattr(request, AFTER_VERSION, after)
            stream: MeshStream[Message] = self._call(request, metadata=metadata)
            return stream

        stream = EventStream(
            begin,
            shape=self._shape,
            encode=self._encoder.encode,
            error=self._render,
            stopping=self._context.stopping,
            keep_alive_seconds=self._context.settings.keep_alive_seconds,
            resumes=self._resumes,
        )
        await stream.serve(receive, send)


class Transcoder:
    """Serves every route of the contracts.

    Args:
        table: The routes.
        call_of: Gives the RPC of a route on a channel to its service.
        context: What every endpoint works with.
    """

    def __init__(
        self, table: RouteTable, call_of: Callable[[Route], Callable[..., Any]], context: EndpointContext
    ) -> None:
        codecs = Codecs()
        self._table = table
        self._endpoints = {id(route): Endpoint(route, codecs, call_of(route), context) for route in table.routes}

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Answer a request, if its path is one of the contracts'; None where it is not."""
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        found = self._table.match(scope["method"], raw_path.decode("utf-8", "replace"))
        if isinstance(found, Match):
            return self._endpoints[id(found.route)].serve(scope, receive, send, found.values)
        if isinstance(found, WrongMethod):
            return send_error(scope, send, method_not_allowed(found.allowed))
        return None


def _query(scope: Scope) -> list[tuple[str, str]]:
    raw: bytes = scope["query_string"]
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        message = f"At most {_MAX_QUERY_FIELDS} parameters are taken"
        raise RefusedRequestError([Violation(("query",), message, "too_long")]) from None


def _too_slow(error: SlowRequestError) -> HttpError:
    # What is still on its way would be taken for the next request.
    detail = f"The request's content did not arrive within {error.seconds:g} seconds"
    return HttpError(408, detail, {"connection": "close"})


def method_not_allowed(allowed: Sequence[str]) -> HttpError:
    """Return the answer to a request whose path exists for other methods only."""
    return HttpError(405, "Method Not Allowed", {"allow": ", ".join(allowed)})
