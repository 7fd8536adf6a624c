"""What every request passes."""

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from meshkit.errors import not_found
from services.gateway.middleware import BodyLimit, RequestMiddleware, note_route


@pytest.fixture(autouse=True)
def informed() -> Iterator[None]:
    """The threshold of a service; a program that configures nothing gets only warnings."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(**before)


def scope(**headers: str) -> dict[str, Any]:
    found = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": "/x", "headers": found, "client": ("10.0.0.9", 1)}


async def ask(app: Any, of: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    left = list(messages) or [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(of, receive, send)
    return sent


async def fine(scope: Any, receive: Any, send: Any) -> None:
    note_route(scope, "GET /x")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def headers_of(sent: list[dict[str, Any]]) -> dict[bytes, bytes]:
    return dict(sent[0]["headers"])


async def test_a_request_gets_an_identity() -> None:
    found = headers_of(await ask(RequestMiddleware(fine), scope()))
    assert found[b"x-request-id"]
    assert found[b"traceparent"].startswith(b"00-")
    assert found[b"x-content-type-options"] == b"nosniff"


async def test_an_identity_that_does_not_belong_into_a_log_is_replaced() -> None:
    found = headers_of(await ask(RequestMiddleware(fine), scope(x_request_id="a b\tc")))
    assert b" " not in found[b"x-request-id"]
    assert headers_of(await ask(RequestMiddleware(fine), scope(x_request_id="mine")))[b"x-request-id"] == b"mine"


async def test_every_request_is_logged_once() -> None:
    with capture_logs() as logs:
        await ask(RequestMiddleware(fine), scope(authorization="Bearer secret"))
    (line,) = logs
    assert (line["method"], line["path"], line["route"], line["status"]) == ("GET", "/x", "GET /x", 200)
    assert line["client"] == "10.0.0.9"
    assert "secret" not in str(line)


async def test_a_domain_error_that_nothing_inside_answered_is_answered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise not_found("Thing", "7")

    sent = await ask(RequestMiddleware(app), scope())
    assert (sent[0]["status"], orjson.loads(sent[1]["body"])) == (404, {"detail": "Thing 7 not found"})


async def test_an_unexpected_error_shows_the_request_and_no_text() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a secret")

    with capture_logs() as logs:
        sent = await ask(RequestMiddleware(app), scope(x_request_id="r-1"))
    assert sent[0]["status"] == 500
    assert orjson.loads(sent[1]["body"]) == {"detail": "Internal error, request r-1"}
    assert [line["event"] for line in logs] == ["request_failed", "request"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
async def test_a_machine_without_room_is_a_503_that_says_when_to_come_again(number: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OSError(number, os.strerror(number), "/a/secret/path")

    with capture_logs() as logs:
        sent = await ask(RequestMiddleware(app), scope(x_request_id="r-1"))
    assert (sent[0]["status"], headers_of(sent)[b"retry-after"]) == (503, b"2")
    assert orjson.loads(sent[1]["body"]) == {"detail": "There is no room for this right now, error r-1"}
    assert logs[0]["event"] == "request_failed"


async def test_an_answer_that_had_begun_is_broken_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    with pytest.raises(RuntimeError), capture_logs():
        await ask(RequestMiddleware(app), scope())


async def reading(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await fine(scope, receive, send)


def piece(size: int, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


async def test_a_body_within_the_limit_passes() -> None:
    app = RequestMiddleware(BodyLimit(reading, max_bytes=10))
    assert (await ask(app, scope(content_length="10"), piece(5, more=True), piece(5, more=False)))[0]["status"] == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_the_limit_is_taken_and_refused(announced: bool) -> None:
    of = scope(content_length="11") if announced else scope()
    app = RequestMiddleware(BodyLimit(reading, max_bytes=10))
    sent = await ask(app, of, piece(5, more=True), piece(6, more=True), piece(900, more=False))
    assert sent[0]["status"] == 413
    assert "10 bytes" in orjson.loads(sent[1]["body"])["detail"]


async def test_a_body_that_is_larger_than_announced_in_pieces_is_refused_all_the_same() -> None:
    of = scope(content_length="5", transfer_encoding="chunked")
    sent = await ask(RequestMiddleware(BodyLimit(reading, max_bytes=10)), of, piece(8, more=True), piece(8, more=False))
    assert sent[0]["status"] == 413
