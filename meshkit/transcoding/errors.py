"""What went wrong, as HTTP: one table from kinds to status codes, and the documented bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshkit.errors import BAD_REQUEST, ErrorKind, MeshError
from meshkit.transcoding.decoding import Loc, Violation

HTTP_OF_KIND: Mapping[ErrorKind, int] = MappingProxyType(
    {
        ErrorKind.INVALID: 422,
        ErrorKind.UNAUTHENTICATED: 401,
        ErrorKind.FORBIDDEN: 403,
        ErrorKind.NOT_FOUND: 404,
        ErrorKind.CONFLICT: 409,
        ErrorKind.TOO_LARGE: 413,
        ErrorKind.EXHAUSTED: 429,
        ErrorKind.UNAVAILABLE: 503,
        ErrorKind.DEADLINE: 504,
        ErrorKind.UNIMPLEMENTED: 501,
        ErrorKind.ABORTED: 409,
        ErrorKind.INTERNAL: 500,
    }
)

# Seconds after which a caller that was turned away for load or an outage should come again.
_RETRY_AFTER = MappingProxyType({ErrorKind.EXHAUSTED: "1", ErrorKind.UNAVAILABLE: "2"})


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as it is answered.

    Attributes:
        status: HTTP status.
        detail: Value of the body's only member, `detail`.
        headers: Headers that belong to it.
    """

    status: int
    detail: str | list[dict[str, Any]]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"detail": self.detail}


class RefusedRequestError(Exception):
    """A request that could not be turned into a message."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{one.loc}: {one.msg}" for one in violations))
        self.violations = tuple(violations)


def _entry(loc: Loc, msg: str, kind: str) -> dict[str, Any]:
    return {"loc": list(loc), "msg": msg, "type": kind}


def refused(violations: Sequence[Violation]) -> HttpError:
    """Render violations that the codec found."""
    return HttpError(422, [_entry(one.loc, one.msg, one.type) for one in violations])


def render(error: MeshError, loc_of: Callable[[str], Loc] | None = None) -> HttpError:
    """Render a domain error.

    Args:
        error: The error, from a service or from the gateway itself.
        loc_of: Translates the path of a violation in the request message to the caller's location; a path is shown
            as it is where there is none.
    """
    headers = _headers(error)
    status = HTTP_OF_KIND[error.kind]
    if error.kind is not ErrorKind.INVALID:
        return HttpError(status, error.message, headers)
    if error.reason == BAD_REQUEST:
        return HttpError(400, error.message, headers)
    if not error.violations:
        return HttpError(status, [_entry(("body",), error.message, "value_error")], headers)
    place = loc_of or (lambda path: ("body", path) if path else ("body",))
    return HttpError(status, [_entry(place(one.path), one.message, one.type) for one in error.violations], headers)


def _headers(error: MeshError) -> Mapping[str, str]:
    if error.kind is ErrorKind.UNAUTHENTICATED:
        # RFC 6750, 3: a request without any token gets the bare challenge.
        if error.reason in {"TOKEN_MISSING", "UNAUTHENTICATED"}:
            return {"www-authenticate": 'Bearer realm="atelier"'}
        return {"www-authenticate": 'Bearer realm="atelier", error="invalid_token"'}
    if error.kind is ErrorKind.FORBIDDEN and "scope" in error.metadata:
        scope = error.metadata["scope"]
        return {"www-authenticate": f'Bearer realm="atelier", error="insufficient_scope", scope="{scope}"'}
    wait = error.metadata.get("retry_after") or _RETRY_AFTER.get(error.kind)
    return {"retry-after": wait} if wait is not None else {}
