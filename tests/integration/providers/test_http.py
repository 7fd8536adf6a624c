"""HTTP to a provider over real sockets: what is sent how often, and what is made of what comes back."""

import logging
from collections.abc import AsyncIterator

import pytest

from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.http import ExchangeLimits, ProviderHttp
from tests.providers.base import (
    BAD_GATEWAY,
    BROKEN,
    CUT_HALF,
    CUT_READ,
    CUT_UNREAD,
    FORBIDDEN,
    HTML,
    NO_CREDITS,
    NO_JSON,
    REDIRECT,
    TOO_MANY,
    UNAUTHORISED,
    Asked,
    Misbehaviour,
    PlainServer,
    Reply,
)

KEY = "Key of-the-tests"


def answer(asked: Asked) -> Reply:
    return Reply.of({"path": asked.path, "said": asked.json})


@pytest.fixture
async def server() -> AsyncIterator[PlainServer]:
    async with PlainServer(answer) as running:
        yield running


@pytest.fixture
async def http(server: PlainServer) -> AsyncIterator[ProviderHttp]:
    limits = ExchangeLimits(connect_seconds=2.0, seconds=3.0, max_bytes=10_000)
    made = ProviderHttp("fal", server.url, {"authorization": KEY}, limits)
    yield made
    await made.close()


async def test_a_paid_request_carries_its_body_and_the_credentials(server: PlainServer, http: ProviderHttp) -> None:
    reply = await http.pay("/fal-ai/x", document={"prompt": "a döner", "seed": 2**60}, params={"a": "b"})
    assert reply.document() == {"path": "/fal-ai/x", "said": {"prompt": "a döner", "seed": 2**60}}
    [asked] = server.asked
    assert (asked.headers["authorization"], asked.query) == (KEY, {"a": "b"})


@pytest.mark.parametrize(
    ("how", "fault", "charged"),
    [
        (CUT_UNREAD, Fault.UNKNOWN, 0),
        (CUT_READ, Fault.UNKNOWN, 1),
        (CUT_HALF, Fault.UNKNOWN, 1),
        (Misbehaviour("slow", slow=5.0), Fault.UNKNOWN, 0),
        (TOO_MANY, Fault.LIMITED, 0),
        (NO_CREDITS, Fault.DENIED, 0),
        (FORBIDDEN, Fault.DENIED, 0),
        (UNAUTHORISED, Fault.DENIED, 0),
        (BROKEN, Fault.BROKEN, 0),
        (BAD_GATEWAY, Fault.UNKNOWN, 0),
        (REDIRECT, Fault.BROKEN, 0),
        (NO_JSON, Fault.UNKNOWN, 0),
        (HTML, Fault.UNKNOWN, 0),
    ],
    ids=str,
)
async def test_a_paid_request_is_sent_once_whatever_happens(
    server: PlainServer, http: ProviderHttp, how: Misbehaviour, fault: Fault, charged: int
) -> None:
    server.misbehave(how)

    async def paid_document() -> object:
        reply = await http.pay("/fal-ai/x", document={})
        if not reply.ok:
            raise reply.error()
        return reply.document()

    with pytest.raises(ProviderError) as failed:
        await paid_document()
    assert failed.value.fault is fault
    assert (server.connections, server.paid) == (1, charged)


async def test_nothing_was_sent_where_nobody_listens(server: PlainServer) -> None:
    async with PlainServer(answer) as gone:
        address = gone.url
    http = ProviderHttp("fal", address, {})
    with pytest.raises(ProviderError) as failed:
        await http.pay("/fal-ai/x", document={})
    assert failed.value.fault is Fault.UNSENT
    await http.close()


async def test_each_paid_request_has_a_connection_of_its_own(server: PlainServer, http: ProviderHttp) -> None:
    for _ in range(3):
        await http.pay("/fal-ai/x", document={})
    assert server.connections == 3
    for _ in range(3):
        await http.get("/status")
    assert server.connections == 4


@pytest.mark.parametrize("how", [CUT_UNREAD, CUT_READ, CUT_HALF, BROKEN, BAD_GATEWAY], ids=str)
async def test_what_costs_nothing_is_asked_again(server: PlainServer, http: ProviderHttp, how: Misbehaviour) -> None:
    server.misbehave(how, times=2)
    assert (await http.get("/status")).document()["path"] == "/status"


async def test_an_error_that_does_not_pass_is_returned_at_once(server: PlainServer, http: ProviderHttp) -> None:
    server.misbehave(FORBIDDEN, times=9)
    assert (await http.get("/status")).status == 403
    assert len(server.asked) == 1


async def test_an_error_that_stays_is_returned_after_a_few_tries(server: PlainServer, http: ProviderHttp) -> None:
    server.misbehave(BROKEN, times=9)
    assert (await http.get("/status", tries=3)).status == 500
    assert len(server.asked) == 3


async def test_the_wait_is_read_off_the_header(server: PlainServer, http: ProviderHttp) -> None:
    server.misbehave(TOO_MANY)
    assert (await http.pay("/fal-ai/x", document={})).error().retry_after == 7.0


async def test_an_answer_that_is_too_large_is_not_read(server: PlainServer, http: ProviderHttp) -> None:
    server.misbehave(Misbehaviour("huge", reply=Reply(200, b"x" * 20_000)), times=2)
    with pytest.raises(ProviderError) as failed:
        await http.get("/status", tries=1)
    assert failed.value.fault is Fault.EMPTY
    with pytest.raises(ProviderError) as failed:
        await http.pay("/fal-ai/x", document={})
    assert failed.value.fault is Fault.UNKNOWN


async def test_credentials_go_to_the_configured_origin_alone(server: PlainServer, http: ProviderHttp) -> None:
    async with PlainServer(answer) as other:
        assert http.own(f"{server.url}/a/b") == f"{server.url}/a/b"
        for foreign in (
            f"{other.url}/a",
            "http://127.0.0.1/a",
            f"{server.url.replace('//', '//user@')}/a",
            "ftp:/",
            7,
            f"{server.url}/{'x' * 2048}",
        ):
            assert http.own(foreign) is None
        with pytest.raises(ProviderError):
            await http.get(f"{other.url}/a")
        server.misbehave(Misbehaviour("away", reply=Reply(302, b"", {"location": f"{other.url}/a"})))
        assert (await http.get("/a", tries=1)).status == 302
        assert other.connections == 0


async def test_no_credential_is_in_an_error_or_a_log(
    server: PlainServer, http: ProviderHttp, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.misbehave(CUT_READ)
    with pytest.raises(ProviderError) as failed:
        await http.pay("/fal-ai/x", document={"prompt": "mine"})
    seen = repr(failed.value) + str(failed.value.__context__) + caplog.text + "".join(capsys.readouterr())
    assert "of-the-tests" not in seen


@pytest.mark.parametrize("address", ["queue.fal.run", "ftp://queue.fal.run", "https://user:pass@queue.fal.run", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address of fal"):
        ProviderHttp("fal", address, {})
