"""Requests of the gateway to its own JSON surface, on behalf of a caller and with the caller's token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.types import Message, Scope

from meshkit.transcoding.errors import HttpError
from services.gateway.asgi import header
from services.gateway.endpoints import Transcoder


class JobCallError(Exception):
    """The surface refused; its answer is the caller's.

    Attributes:
        error: The answer.
    """

    def __init__(self, error: HttpError) -> None:
        super().__init__(str(error.detail))
        self.error = error


@dataclass(frozen=True, slots=True)
class SurfaceCalls:
    """Asks the JSON surface for one caller.

    Attributes:
        transcoder: Serves the surface.
        authorization: What the caller proves itself by.
    """

    transcoder: Transcoder
    authorization: str

    @classmethod
    def of(cls, transcoder: Transcoder, scope: Scope) -> SurfaceCalls:
        """Return the calls of whoever sends a request."""
        return cls(transcoder, header(scope, b"authorization"))

    async def ask(self, method: str, path: str, query: Mapping[str, object] | None = None) -> Any:
        """Return what the surface answers.

        Raises:
            JobCallError: It refuses.
        """
        status, headers, content = await self._request(method, path, query or {})
        answer = orjson.loads(content) if content else None
        if status >= 400:
            detail = answer["detail"] if isinstance(answer, dict) else "Not Found"
            told = {name: value for name, value in headers.items() if name in {"retry-after", "www-authenticate"}}
            raise JobCallError(HttpError(status, detail, told))
        return answer

    async def find(self, path: str) -> Any | None:
        """Return what the surface has at a path; None where there is nothing.

        Raises:
            JobCallError: It refuses.
        """
        try:
            return await self.ask("GET", path)
        except JobCallError as error:
            if error.error.status == 404:
                return None
            raise

    async def _request(self, method: str, path: str, query: Mapping[str, object]) -> tuple[int, dict[str, str], bytes]:
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode({name: str(value) for name, value in query.items()}).encode(),
            "headers": [(b"authorization", self.authorization.encode("latin-1"))],
        }
        status, headers, content = 0, {}, []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            else:
                content.append(message.get("body", b""))

        answering = self.transcoder.serve(scope, receive, send)
        if answering is None:  # the service of this route is not part of the mesh
            return 404, {}, b""
        await answering
        return status, headers, b"".join(content)
