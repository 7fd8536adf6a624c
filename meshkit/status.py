"""Domain errors as gRPC status and back, in one table.

A `MeshError` travels as `google.rpc.Status` with `ErrorInfo` (always) and `BadRequest` (with violations) in the
trailing metadata `grpc-status-details-bin`, so that Go, Java or any other client can read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from meshkit.errors import ErrorKind, FieldViolation, MeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

DOMAIN = "atelier"
DETAILS_KEY = "grpc-status-details-bin"

# A client that was not told otherwise takes 8 KiB of metadata; what is longer would lose the whole status. On the wire
# the message grows threefold (percent-encoding) and the details by a third (base64).
_MAX_DETAIL_BYTES = 4096
_MAX_MESSAGE_BYTES = 600

CODE_OF_KIND: Mapping[ErrorKind, grpc.StatusCode] = MappingProxyType(
    {
        ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
        ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        ErrorKind.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorKind.TOO_LARGE: grpc.StatusCode.OUT_OF_RANGE,
        ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
        ErrorKind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
        ErrorKind.ABORTED: grpc.StatusCode.ABORTED,
        ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)

# Codes that the mesh does not raise itself but that gRPC or a foreign server may.
KIND_OF_CODE: Mapping[grpc.StatusCode, ErrorKind] = MappingProxyType(
    {code: kind for kind, code in CODE_OF_KIND.items()}
    | {
        # Never by the caller, who gets no status then: the server stopped or lost the call.
        grpc.StatusCode.CANCELLED: ErrorKind.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN: ErrorKind.INTERNAL,
        grpc.StatusCode.ALREADY_EXISTS: ErrorKind.CONFLICT,
        grpc.StatusCode.DATA_LOSS: ErrorKind.INTERNAL,
        grpc.StatusCode.OK: ErrorKind.INTERNAL,  # an error that says OK is a fault of its sender
    }
)

_KIND_OF_NUMBER: Mapping[int, ErrorKind] = MappingProxyType(
    {code.value[0]: kind for code, kind in KIND_OF_CODE.items()}
)

# What a caller is told where only gRPC's own text exists, which names addresses and internals.
_PLAIN_MESSAGES: Mapping[ErrorKind, str] = MappingProxyType(
    {
        ErrorKind.UNAVAILABLE: "The service is not reachable",
        ErrorKind.DEADLINE: "The service did not answer in time",
        ErrorKind.ABORTED: "The call was cancelled",
        ErrorKind.INTERNAL: "Internal error",
        ErrorKind.UNIMPLEMENTED: "The service does not know this method",
        ErrorKind.TOO_LARGE: "The message is larger than the service accepts",
        ErrorKind.EXHAUSTED: "The service takes no more calls right now",
    }
)


def to_status(error: MeshError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Render an error for `context.abort`.

    Args:
        error: The error.

    Returns:
        Code, details text and trailing metadata.
    """
    code = CODE_OF_KIND[error.kind]
    message = error.message.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    if error.violations:
        room = _MAX_DETAIL_BYTES - status.ByteSize()
        status.details.add().Pack(_bad_request(error.violations, room))
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """Read the error back on the client's side; `from_rpc_error` of what `to_status` wrote is the same error."""
    details = _details(error)
    if details is None:
        return _plain(error)
    info, violations, _ = details
    return MeshError(
        KIND_OF_CODE[error.code()],
        error.details() or "",
        reason=info.reason,
        violations=violations,
        metadata=dict(info.metadata),
    )


def from_status(code: int, payload: bytes) -> MeshError:
    """Read an error from the number of its code and its serialized `google.rpc.Status`, as `from_rpc_error` does."""
    kind = _KIND_OF_NUMBER.get(code, ErrorKind.INTERNAL)
    details = _parse(payload)
    if details is None:
        return MeshError(kind, _PLAIN_MESSAGES.get(kind, ""))
    info, violations, message = details
    return MeshError(kind, message, reason=info.reason, violations=violations, metadata=dict(info.metadata))


def _bad_request(violations: Sequence[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for violation in violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=violation.path, description=violation.message, reason=violation.type
        )
        room -= entry.ByteSize() + 4
        # The first one is always told, however long: cut rather than silent.
        if room < 0 and request.field_violations:
            break
        if room < 0:
            entry.field, entry.description = entry.field[:500], entry.description[:500]
        request.field_violations.append(entry)
    return request


_Details = tuple[error_details_pb2.ErrorInfo, list[FieldViolation], str]


def _details(error: grpc.aio.AioRpcError) -> _Details | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return _parse(value)
    return None


def _parse(payload: bytes) -> _Details | None:
    try:
        status = status_pb2.Status.FromString(payload)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(request)
    if info.domain != DOMAIN:
        return None
    violations = [FieldViolation(v.field, v.description, v.reason) for v in request.field_violations]
    return info, violations, status.message


def _plain(error: grpc.aio.AioRpcError) -> MeshError:
    kind = KIND_OF_CODE[error.code()]
    details = error.details() or ""
    if kind is ErrorKind.EXHAUSTED and "larger than max" in details:  # gRPC's own limit, by its wording
        kind = ErrorKind.TOO_LARGE
    return MeshError(kind, _PLAIN_MESSAGES.get(kind, details))
