"""Headers, preferences, complete answers, bodies."""

import gzip
from typing import Any

import pytest

from services.gateway.asgi import ClientGoneError, header, read_body, send_content, strict


def scope(method: str = "GET", **headers: str) -> dict[str, Any]:
    found = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "headers": found}


async def answer(of: dict[str, Any], content: bytes, **options: Any) -> tuple[dict[str, str], bytes, int]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await send_content(of, send, content, **options)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, sent[1]["body"], sent[0]["status"]


@pytest.mark.parametrize(
    ("prefer", "found"),
    [
        ("handling=strict", True),
        ("respond-async, handling = strict", True),
        ('handling="strict"; x=1', True),
        ("Handling=Strict", True),
        ("handling=lenient", False),
        ("", False),
    ],
)
def test_preferences_are_read(prefer: str, found: bool) -> None:
    assert strict(scope(prefer=prefer)) is found


def test_repeated_headers_are_joined() -> None:
    assert header({"headers": [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]}, b"a") == "1, 3"
    assert header({"headers": []}, b"a") == ""


@pytest.mark.parametrize(
    ("accept", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
@pytest.mark.parametrize("size", [5_000, 500_000])
async def test_content_is_compressed_where_it_is_taken(accept: str, packed: bool, size: int) -> None:
    headers, body, _ = await answer(scope(accept_encoding=accept), b"x" * size)
    assert (headers.get("content-encoding") == "gzip") is packed
    assert (gzip.decompress(body) if packed else body) == b"x" * size
    assert int(headers["content-length"]) == len(body)
    assert headers["vary"] == "accept-encoding"


async def test_small_content_is_not_compressed() -> None:
    headers, body, status = await answer(scope(accept_encoding="gzip"), b"small", status=201, headers={"a": "b"})
    assert (headers.get("content-encoding"), body, status, headers["a"]) == (None, b"small", 201, "b")


async def test_head_has_the_length_and_no_content() -> None:
    headers, body, _ = await answer(scope("HEAD"), b"some")
    assert (headers["content-length"], body) == ("4", b"")


def receiving(*messages: dict[str, Any]) -> Any:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    return receive


async def test_a_body_in_pieces_is_read_whole() -> None:
    pieces = [{"type": "http.request", "body": one, "more_body": True} for one in (b"a", b"b")]
    assert await read_body(receiving(*pieces, {"type": "http.request", "body": b"c"})) == b"abc"
    assert await read_body(receiving({"type": "http.request"})) == b""


async def test_a_caller_who_leaves_is_not_answered() -> None:
    with pytest.raises(ClientGoneError):
        await read_body(
            receiving({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"})
        )
