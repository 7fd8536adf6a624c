"""Domain errors as HTTP."""

import pytest

from meshkit.errors import ErrorKind, FieldViolation, MeshError, exhausted, invalid, unauthenticated
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import HTTP_OF_KIND, refused, render


def test_every_kind_has_its_status() -> None:
    assert dict(HTTP_OF_KIND) == {
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
    assert set(HTTP_OF_KIND) == set(ErrorKind)


@pytest.mark.parametrize("kind", sorted(set(ErrorKind) - {ErrorKind.INVALID}))
def test_an_error_is_its_sentence(kind: ErrorKind) -> None:
    answer = render(MeshError(kind, "so it is"))
    assert (answer.status, answer.body) == (HTTP_OF_KIND[kind], {"detail": "so it is"})


def test_violations_are_listed_where_the_caller_put_them() -> None:
    error = MeshError(ErrorKind.INVALID, "bad", violations=(FieldViolation("a.b[0]", "is bad", "odd"),))
    assert render(error, lambda path: ("body", path.upper())).body == {
        "detail": [{"loc": ["body", "A.B[0]"], "msg": "is bad", "type": "odd"}]
    }
    assert render(invalid("x", "is bad")).body["detail"][0]["loc"] == ["body", "x"]


def test_an_invalid_request_without_a_member_is_about_the_body() -> None:
    assert render(MeshError(ErrorKind.INVALID, "does not fit")).body == {
        "detail": [{"loc": ["body"], "msg": "does not fit", "type": "value_error"}]
    }


def test_what_the_codec_found_reads_alike() -> None:
    answer = refused([Violation(("query", "limit"), "is bad", "int_type")])
    assert answer.status == 422
    assert answer.body == {"detail": [{"loc": ["query", "limit"], "msg": "is bad", "type": "int_type"}]}


def test_a_caller_is_told_how_to_authenticate() -> None:
    assert render(unauthenticated("who?", "TOKEN_MISSING")).headers == {"www-authenticate": 'Bearer realm="atelier"'}
    expired = render(unauthenticated("old", "TOKEN_EXPIRED"))
    assert expired.headers == {"www-authenticate": 'Bearer realm="atelier", error="invalid_token"'}
    lacking = render(MeshError(ErrorKind.FORBIDDEN, "no", metadata={"scope": "write"}))
    assert 'error="insufficient_scope", scope="write"' in lacking.headers["www-authenticate"]


def test_a_caller_is_told_when_to_come_again() -> None:
    assert render(MeshError(ErrorKind.UNAVAILABLE, "down")).headers == {"retry-after": "2"}
    assert render(exhausted("full")).headers == {"retry-after": "1"}
    assert render(MeshError(ErrorKind.EXHAUSTED, "full", metadata={"retry_after": "9"})).headers == {"retry-after": "9"}
