"""Domain errors as HTTP."""

import pytest

from meshkit.errors import FieldViolation, Kind, MeshError, exhausted, invalid, unauthenticated
from services.gateway.transcoding.codec import Violation
from services.gateway.transcoding.errors import HTTP_OF_KIND, refused, render


def test_every_kind_has_its_status() -> None:
    assert dict(HTTP_OF_KIND) == {
        Kind.INVALID: 422,
        Kind.UNAUTHENTICATED: 401,
        Kind.FORBIDDEN: 403,
        Kind.NOT_FOUND: 404,
        Kind.CONFLICT: 409,
        Kind.TOO_LARGE: 413,
        Kind.EXHAUSTED: 429,
        Kind.UNAVAILABLE: 503,
        Kind.DEADLINE: 504,
        Kind.UNIMPLEMENTED: 501,
        Kind.ABORTED: 409,
        Kind.INTERNAL: 500,
    }
    assert set(HTTP_OF_KIND) == set(Kind)


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.INVALID}))
def test_an_error_is_its_sentence(kind: Kind) -> None:
    answer = render(MeshError(kind, "so it is"))
    assert (answer.status, answer.body) == (HTTP_OF_KIND[kind], {"detail": "so it is"})


def test_violations_are_listed_where_the_caller_put_them() -> None:
    error = MeshError(Kind.INVALID, "bad", violations=(FieldViolation("a.b[0]", "is bad", "odd"),))
    assert render(error, lambda path: ("body", path.upper())).body == {
        "detail": [{"loc": ["body", "A.B[0]"], "msg": "is bad", "type": "odd"}]
    }
    assert render(invalid("x", "is bad")).body["detail"][0]["loc"] == ["body", "x"]


def test_an_invalid_request_without_a_member_is_about_the_body() -> None:
    assert render(MeshError(Kind.INVALID, "does not fit")).body == {
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
    lacking = render(MeshError(Kind.FORBIDDEN, "no", metadata={"scope": "write"}))
    assert 'error="insufficient_scope", scope="write"' in lacking.headers["www-authenticate"]


def test_a_caller_is_told_when_to_come_again() -> None:
    assert render(MeshError(Kind.UNAVAILABLE, "down")).headers == {"retry-after": "2"}
    assert render(exhausted("full")).headers == {"retry-after": "1"}
    assert render(MeshError(Kind.EXHAUSTED, "full", metadata={"retry_after": "9"})).headers == {"retry-after": "9"}
