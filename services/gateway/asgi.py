"""Small tools over ASGI: headers of a request, and answers that are complete when they begin."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meshkit.transcoding.errors import HttpError

# Above this, compressing would hold the event loop for milliseconds.
_GZIP_IN_THREAD_BYTES = 128 * 1024
_GZIP_LEVEL = 4

JSON = b"application/json"

# Where a request's scope keeps its headers by name, once somebody asked for one.
_BY_NAME = "atelier.headers"


def header(scope: Scope, name: bytes) -> str:
    """Return a request header, empty where there is none; repeated ones are joined by commas."""
    found: dict[bytes, bytes] | None = scope.get(_BY_NAME)
    if found is None:
        found = scope[_BY_NAME] = _by_name(scope["headers"])
    value = found.get(name)
    return "" if value is None else value.decode("latin-1")


def _by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    found = dict(headers)
    if len(found) == len(headers):
        return found
    found = {}
    for key, value in headers:
        found[key] = found[key] + b", " + value if key in found else value
    return found


def misencoded(scope: Scope) -> str:
    """Return which part of a request's address is no UTF-8, `path` or `query`; empty where all of it is.

    Decoding replaces what it cannot read, so that different addresses would come to be one.
    """
    for part, raw in (("path", scope.get("raw_path") or b""), ("query", scope["query_string"])):
        try:
            (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
        except UnicodeDecodeError:
            return part
    return ""


def strict(scope: Scope) -> bool:
    """Tell whether the caller asks that unknown members be refused (RFC 7240: `Prefer: handling=strict`)."""
    text = header(scope, b"prefer")
    if not text:
        return False
    preferences = text.lower().replace(" ", "").replace('"', "")
    return "handling=strict" in preferences.replace(";", ",").split(",")


def _accepts_gzip(scope: Scope) -> bool:
    for one in header(scope, b"accept-encoding").lower().split(","):
        coding, _, quality = one.partition(";")
        if coding.strip() in {"gzip", "*"}:
            return quality.strip().replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


async def send_content(
    scope: Scope,
    send: Send,
    content: bytes,
    *,
    status: int = 200,
    content_type: bytes = JSON,
    headers: Mapping[str, str] | None = None,
    gzip_min_bytes: int = 1024,
) -> None:
    """Send a complete answer, compressed where that pays and the caller takes it."""
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if len(content) > gzip_min_bytes:
        fields.append((b"vary", b"accept-encoding"))
        if _accepts_gzip(scope):
            fields.append((b"content-encoding", b"gzip"))
            if len(content) > _GZIP_IN_THREAD_BYTES:
                content = await asyncio.to_thread(gzip.compress, content, _GZIP_LEVEL, mtime=0)
            else:
                content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
    fields += [(b"content-type", content_type), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


async def send_json(
    scope: Scope, send: Send, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send a JSON answer."""
    await send_content(scope, send, orjson.dumps(value), status=status, headers=headers)


async def send_error(scope: Scope, send: Send, error: HttpError) -> None:
    """Send an error."""
    await send_json(scope, send, error.body, status=error.status, headers=error.headers)


async def read_body(receive: Receive) -> bytes:
    """Read the whole content of a request; the limit is kept by what wraps `receive`.

    Raises:
        ClientGoneError: the caller left before it was complete.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message.get("body", b""))
    chunks = []
    while message["type"] == "http.request":
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()
    raise ClientGoneError


async def read_beginning(receive: Receive, least: int) -> tuple[bytes, bool]:
    """Read the beginning of a request's content.

    Args:
        receive: Gives the content.
        least: Bytes to read, where there are as many.

    Returns:
        What was read, and whether it is the whole content.

    Raises:
        ClientGoneError: the caller left before it was complete.
    """
    read = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        read += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(read), True
        if len(read) > least:
            return bytes(read), False


class ClientGoneError(Exception):
    """The caller left; there is nobody to answer."""


class JsonResponse(Response):
    """A JSON answer, compressed as those of the contracts are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content."""
        return orjson.dumps(content)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI's signature
        """Send the answer."""
        own = {"content-type", "content-length"}
        headers = {name: value for name, value in self.headers.items() if name not in own}
        await send_content(scope, send, bytes(self.body), status=self.status_code, headers=headers)
