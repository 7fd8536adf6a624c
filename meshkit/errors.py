"""The one kind of error that crosses the mesh.

A service raises `MeshError`; `meshkit.status` carries it through gRPC unchanged and the gateway turns it into HTTP.
Its message is written for the caller: no driver's or library's text belongs in it.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


class ErrorKind(enum.StrEnum):
    """What went wrong, in terms that a caller can act on."""

    INVALID = "INVALID"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    TOO_LARGE = "TOO_LARGE"
    EXHAUSTED = "EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE = "DEADLINE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"


_OUT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG})

TRANSIENT = frozenset(
    {ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE, ErrorKind.EXHAUSTED, ErrorKind.ABORTED, ErrorKind.INTERNAL}
)
"""Kinds of errors after which the same call may succeed later: the caller did nothing wrong."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One member of a request that does not hold.

    Attributes:
        path: Dotted path of the member in the request message; elements of lists as `[0]`, of maps as `["key"]`.
        message: What is wrong, for the caller.
        type: Machine-readable name of the rule, e.g. `missing`, `greater_than_equal`, `value_error`.
    """

    path: str
    message: str
    type: str = "value_error"


class MeshError(Exception):
    """An error meant for the caller.

    Args:
        kind: What went wrong.
        message: A sentence for the caller.
        reason: Stable UPPER_SNAKE name of the cause; the kind's name where absent.
        violations: Members of the request that do not hold, for `ErrorKind.INVALID`.
        metadata: Further facts that a program may use, e.g. the identifier that was not found.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.reason = reason or kind.value
        self.violations: tuple[FieldViolation, ...] = tuple(violations)
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    def __eq__(self, other: object) -> bool:
        """Equal where every part is; identity of the traceback does not count."""
        if not isinstance(other, MeshError):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self.kind, self.message, self.reason, self.violations))

    def __repr__(self) -> str:
        return f"MeshError({self.kind.value}, {self.message!r}, reason={self.reason!r})"

    def _parts(self) -> tuple[object, ...]:
        return (self.kind, self.message, self.reason, self.violations, dict(self.metadata))


def invalid(path: str, message: str, type: str = "value_error") -> MeshError:  # noqa: A002 -- the JSON member's name
    """Build the error: a request with one member that does not hold.

    Args:
        path: Dotted path of the member in the request message.
        message: What is wrong with it.
        type: Machine-readable name of the rule.
    """
    return MeshError(ErrorKind.INVALID, message, violations=(FieldViolation(path, message, type),))


BAD_REQUEST = "BAD_REQUEST"
"""Reason of a request that HTTP answers with 400 and a sentence, where the documented surface has it so."""


def bad_request(message: str) -> MeshError:
    """Build the error: a request that does not hold, of those few that the documented surface answers with 400."""
    return MeshError(ErrorKind.INVALID, message, reason=BAD_REQUEST)


def not_found(what: str, ident: str) -> MeshError:
    """Nothing of this identifier exists for this caller; what another tenant owns is not found either."""
    return MeshError(
        ErrorKind.NOT_FOUND,
        f"{what} {ident} not found",
        reason=f"{what.upper().replace(' ', '_')}_NOT_FOUND",
        metadata={"id": ident},
    )


def conflict(message: str, reason: str = "CONFLICT") -> MeshError:
    """Build the error: the request cannot be done in the present state."""
    return MeshError(ErrorKind.CONFLICT, message, reason=reason)


def forbidden(message: str, reason: str = "FORBIDDEN") -> MeshError:
    """Build the error: the caller is known and may not do this."""
    return MeshError(ErrorKind.FORBIDDEN, message, reason=reason)


def unauthenticated(message: str, reason: str = "UNAUTHENTICATED") -> MeshError:
    """Build the error: the caller is not known."""
    return MeshError(ErrorKind.UNAUTHENTICATED, message, reason=reason)


def too_large(message: str, reason: str = "TOO_LARGE") -> MeshError:
    """Build the error: the request or its answer passes a size limit."""
    return MeshError(ErrorKind.TOO_LARGE, message, reason=reason)


def exhausted(message: str, reason: str = "EXHAUSTED") -> MeshError:
    """Build the error: a quota or a capacity is used up; later may succeed."""
    return MeshError(ErrorKind.EXHAUSTED, message, reason=reason)


def unavailable(message: str, reason: str = "UNAVAILABLE") -> MeshError:
    """Build the error: a part of the mesh does not answer; later may succeed."""
    return MeshError(ErrorKind.UNAVAILABLE, message, reason=reason)


def no_room(ident: str) -> MeshError:
    """Build the error: a disk or another resource of the machine is used up; later may succeed.

    Args:
        ident: Identifier under which the log has the cause.
    """
    return MeshError(
        ErrorKind.UNAVAILABLE,
        f"There is no room for this right now, error {ident}",
        reason="NO_ROOM_LEFT",
        metadata={"error_id": ident},
    )


def is_out_of_room(error: BaseException) -> bool:
    """Whether an error means that the machine has no more of something: disk, quota or descriptors."""
    return isinstance(error, OSError) and error.errno in _OUT_OF_ROOM
