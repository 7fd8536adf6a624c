"""Requests that are no message of their type.

gRPC decodes a request before the interceptors see it, and what that raises ends the call as UNKNOWN, with the decoder's
own text. So a request that cannot be read passes as a mark, and is refused once its caller is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshkit.errors import ErrorKind, MeshError

UNREADABLE: Final = object()


def or_unreadable(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Make a decoder that returns `UNREADABLE` where `read` cannot decode."""

    def decode(content: bytes) -> Any:
        try:
            return read(content)
        except DecodeError:
            return UNREADABLE

    return decode


def require_readable(request: object) -> None:
    """Refuse a request that could not be decoded.

    Raises:
        MeshError: `INVALID`.
    """
    if request is UNREADABLE:
        raise MeshError(ErrorKind.INVALID, "The request cannot be read")
