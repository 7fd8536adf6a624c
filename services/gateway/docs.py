"""`/docs`: a page of our own whose every asset ships with the gateway."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from meshkit.errors import not_found
from services.gateway.middleware import note_route

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Docs:
    """The page and its assets, read once at start."""

    def __init__(self) -> None:
        folder = files("services.gateway") / "static"
        self._assets = {
            one.name: one.read_bytes() for one in folder.iterdir() if one.name.endswith(tuple(_TYPES)) and one.is_file()
        }

    async def home(self, request: Request) -> Response:
        """Answer `GET /`."""
        note_route(request.scope, "GET /")
        return RedirectResponse("/docs", 307)

    async def page(self, request: Request) -> Response:
        """Answer `GET /docs`."""
        note_route(request.scope, "GET /docs")
        return self._asset("index.html")

    async def asset(self, request: Request) -> Response:
        """Answer `GET /docs/{name}`."""
        note_route(request.scope, "GET /docs/{name}")
        return self._asset(request.path_params["name"])

    def _asset(self, name: str) -> Response:
        content = self._assets.get(name)
        if content is None:
            raise not_found("Asset", name)
        suffix = name[name.rindex(".") :]
        headers = {"content-type": _TYPES[suffix], "cache-control": "no-cache", "content-security-policy": _POLICY}
        return Response(content, headers=headers)
