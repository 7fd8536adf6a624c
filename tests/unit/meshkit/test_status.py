from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from meshkit.errors import ErrorKind, FieldViolation, MeshError, not_found
from meshkit.status import CODE_OF_KIND, DETAILS_KEY, KIND_OF_CODE, from_rpc_error, to_status


def over_the_wire(error: MeshError) -> MeshError:
    code, details, trailing = to_status(error)
    return from_rpc_error(rpc_error(code, details, trailing))


def rpc_error(code: Any, details: Any = "", trailing: Any = ()) -> Any:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=details)


def test_every_kind_has_a_code_of_its_own() -> None:
    assert set(CODE_OF_KIND) == set(ErrorKind)
    assert len(set(CODE_OF_KIND.values())) == len(ErrorKind)


def test_every_code_has_a_kind() -> None:
    assert set(KIND_OF_CODE) == set(grpc.StatusCode)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.OK, ErrorKind.INTERNAL),
        (grpc.StatusCode.CANCELLED, ErrorKind.UNAVAILABLE),
        (grpc.StatusCode.UNKNOWN, ErrorKind.INTERNAL),
        (grpc.StatusCode.INVALID_ARGUMENT, ErrorKind.INVALID),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorKind.DEADLINE),
        (grpc.StatusCode.NOT_FOUND, ErrorKind.NOT_FOUND),
        (grpc.StatusCode.ALREADY_EXISTS, ErrorKind.CONFLICT),
        (grpc.StatusCode.PERMISSION_DENIED, ErrorKind.FORBIDDEN),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorKind.EXHAUSTED),
        (grpc.StatusCode.FAILED_PRECONDITION, ErrorKind.CONFLICT),
        (grpc.StatusCode.ABORTED, ErrorKind.ABORTED),
        (grpc.StatusCode.OUT_OF_RANGE, ErrorKind.TOO_LARGE),
        (grpc.StatusCode.UNIMPLEMENTED, ErrorKind.UNIMPLEMENTED),
        (grpc.StatusCode.INTERNAL, ErrorKind.INTERNAL),
        (grpc.StatusCode.UNAVAILABLE, ErrorKind.UNAVAILABLE),
        (grpc.StatusCode.DATA_LOSS, ErrorKind.INTERNAL),
        (grpc.StatusCode.UNAUTHENTICATED, ErrorKind.UNAUTHENTICATED),
    ],
)
def test_a_foreign_code_becomes_this_kind(code: Any, kind: Any) -> None:
    assert from_rpc_error(rpc_error(code, "text")).kind is kind


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_survives_the_wire(kind: Any) -> None:
    error = MeshError(
        kind,
        "Größe: 3 px",
        reason="SOME_REASON",
        violations=(FieldViolation('a[0].b["k"]', "must not", "value_error"), FieldViolation("", "all of it")),
        metadata={"id": "1", "retry_after": "5"},
    )
    assert over_the_wire(error) == error


def test_details_are_readable_by_any_grpc_client() -> None:
    _, _, ((key, payload),) = to_status(not_found("Task", "7"))
    status = status_pb2.Status.FromString(payload)
    info = error_details_pb2.ErrorInfo()
    assert key == "grpc-status-details-bin"
    assert (status.code, status.message) == (code_pb2.NOT_FOUND, "Task 7 not found")
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("atelier", "TASK_NOT_FOUND", {"id": "7"})


def test_many_violations_are_cut_to_what_metadata_carries() -> None:
    many = [FieldViolation(f"items[{i}].name", "x" * 100) for i in range(1000)]
    error = MeshError(ErrorKind.INVALID, "bad", violations=many)
    _, _, ((_, payload),) = to_status(error)
    assert len(payload) < 4200
    received = over_the_wire(error).violations
    assert 10 < len(received) < 1000
    assert received == tuple(many[: len(received)])


def test_a_long_message_is_cut_between_characters() -> None:
    error = over_the_wire(MeshError(ErrorKind.INVALID, "ü" * 1000))
    assert error.message == "ü" * 300


def test_one_huge_violation_is_shortened_not_dropped() -> None:
    error = MeshError(ErrorKind.INVALID, "bad", violations=[FieldViolation("p", "x" * 50_000)])
    (violation,) = over_the_wire(error).violations
    assert violation.path == "p"
    assert 0 < len(violation.message) <= 1000


def test_text_of_grpc_itself_does_not_reach_the_caller() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect to ipv4:10.1.2.3:9101"))
    assert error == MeshError(ErrorKind.UNAVAILABLE, "The service is not reachable")


def test_grpcs_own_size_limit_is_told_apart_from_a_quota() -> None:
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 8)")
    )
    assert error.kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", status_pb2.Status(code=5, message="theirs").SerializeToString()])
def test_details_of_others_are_not_taken_for_ours(payload: Any) -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "gone", ((DETAILS_KEY, payload),)))
    assert error == MeshError(ErrorKind.NOT_FOUND, "gone")
