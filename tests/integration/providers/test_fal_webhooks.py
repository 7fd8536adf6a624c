"""fal's webhooks: a knock that is fal's makes the attempt that waits look at once, and nothing else does anything."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from atelier.tasks.v1.enums_pb2 import TASK_TYPE_GENERATION
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshkit.bus import Bus
from meshkit.images.checks import ImageChecks
from services.inference.providers import fal_standard
from services.inference.providers.config import ProviderSettings
from services.inference.providers.fal_webhooks import FalKeys, FalWebhooks, open_fal_door, serve_webhooks
from services.inference.providers.kit import ProviderKit
from services.inference.providers.wakes import ProviderWakes
from tests.providers.attempt import FakeAttempt
from tests.providers.base import Asked, PlainServer, Reply
from tests.providers.fal import FalServer
from tests.providers.fal_tasks import drawing

TASK, OTHER = (f"00000000-0000-4000-8000-00000000000{number}" for number in (1, 2))
USER = "auth0|fal"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Signer:
    """fal's keys: publishes one, and signs by it or by another."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.fetched = 0

    def document(self, _: Asked) -> Reply:
        self.fetched += 1
        x = base64.urlsafe_b64encode(self.key.public_key().public_bytes_raw()).decode().rstrip("=")
        return Reply.of({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}, {"x": "nonsense"}, 7]})

    def headers(self, request: str, body: bytes, moment: float | None = None) -> dict[str, str]:
        stamp = str(int(time.time() if moment is None else moment))
        message = "\n".join((request, USER, stamp, hashlib.sha256(body).hexdigest())).encode()
        return {
            "x-fal-webhook-request-id": request,
            "x-fal-webhook-user-id": USER,
            "x-fal-webhook-timestamp": stamp,
            "x-fal-webhook-signature": self.key.sign(message).hex(),
        }


def payload(request: str) -> bytes:
    return json.dumps({"request_id": request, "gateway_request_id": request, "status": "OK", "payload": {}}).encode()


@pytest_asyncio.fixture(loop_scope="module")
async def signer() -> AsyncIterator[tuple[Signer, str]]:
    made = Signer()
    async with PlainServer(made.document) as server:
        yield made, f"{server.url}/.well-known/jwks.json"


@pytest_asyncio.fixture(loop_scope="module")
async def woken(signer: tuple[Signer, str]) -> AsyncIterator[tuple[FalWebhooks, Signer, asyncio.Event]]:
    wakes = ProviderWakes()
    with wakes.waiting(TASK, "r-1") as event:
        yield FalWebhooks(FalKeys(signer[1]), wakes), signer[0], event


Door = tuple[FalWebhooks, Signer, asyncio.Event]


async def test_a_knock_of_fal_wakes_who_waits(woken: Door) -> None:
    webhooks, fal, event = woken
    body = payload("r-1")
    assert await webhooks.receive(TASK, fal.headers("r-1", body), body) == 200
    assert event.is_set()
    assert fal.fetched == 1


async def test_a_knock_that_is_repeated_does_nothing_more(woken: Door) -> None:
    webhooks, fal, _ = woken
    body = payload("r-2")
    headers = fal.headers("r-2", body)
    wakes = ProviderWakes()
    webhooks = FalWebhooks(webhooks._keys, wakes)
    with wakes.waiting(TASK, "r-2") as event:
        assert await webhooks.receive(TASK, headers, body) == 200
        assert event.is_set()
    for _ in range(3):
        assert await webhooks.receive(TASK, headers, body) == 200
    assert wakes._waiting == {}


FORGED: list[tuple[str, Mapping[str, Any]]] = [
    ("late", {"moment": -301.0}),
    ("early", {"moment": 301.0}),
    ("other_body", {"sent": payload("r-1") + b" "}),
    ("other_key", {"other_key": True}),
    ("no_signature", {"change": {"x-fal-webhook-signature": ""}}),
    ("no_hex", {"change": {"x-fal-webhook-signature": "zz"}}),
    ("other_user", {"change": {"x-fal-webhook-user-id": "me"}}),
    ("no_moment", {"change": {"x-fal-webhook-timestamp": ""}}),
    ("odd_moment", {"change": {"x-fal-webhook-timestamp": "1e9"}}),
    ("other_request", {"change": {"x-fal-webhook-request-id": "r-9"}}),
    ("body_of_another", {"signed": payload("r-9"), "sent": payload("r-9")}),
    ("no_json", {"signed": b"\xff", "sent": b"\xff"}),
    ("no_task", {"task": "../" + TASK}),
]


@pytest.mark.parametrize(("_name", "how"), FORGED, ids=[name for name, _ in FORGED])
async def test_a_knock_that_is_not_fals_does_nothing(woken: Door, _name: str, how: Mapping[str, Any]) -> None:
    webhooks, fal, event = woken
    signed = how.get("signed", payload("r-1"))
    signer = Signer() if how.get("other_key") else fal
    headers = signer.headers("r-1", signed, time.time() + how.get("moment", 0.0)) | how.get("change", {})
    assert await webhooks.receive(how.get("task", TASK), headers, how.get("sent", signed)) in (400, 401)
    assert not event.is_set()


@pytest.mark.parametrize(("task", "request_id"), [(OTHER, "r-1"), (TASK, "r-2")], ids=["task", "request"])
async def test_the_request_of_another_task_wakes_nobody(woken: Door, task: str, request_id: str) -> None:
    webhooks, fal, event = woken
    body = payload(request_id)
    assert await webhooks.receive(task, fal.headers(request_id, body), body) == 200
    assert not event.is_set()


async def test_keys_are_kept_for_a_day_and_fetched_again_where_they_have_changed(signer: tuple[Signer, str]) -> None:
    fal, url = signer
    now = 1000.0
    keys, message = FalKeys(url, lambda: now), b"a message"
    for _ in range(3):
        assert await keys.verify(fal.key.sign(message), message)
    assert fal.fetched == 1
    now += 23 * 3600
    fal.key = Ed25519PrivateKey.generate()
    assert await keys.verify(fal.key.sign(message), message)
    assert fal.fetched == 2
    # Forged ones do not have the keys fetched each time.
    for _ in range(5):
        assert not await keys.verify(b"x" * 64, message)
    assert fal.fetched == 2


async def test_without_keys_nothing_is_believed() -> None:
    keys = FalKeys("http://127.0.0.1:9/keys")
    assert not await keys.verify(b"x" * 64, b"m")


async def test_a_wake_crosses_workers(nats_url: str) -> None:
    async with AsyncExitStack() as stack:
        buses = [Bus(nats_url), Bus(nats_url)]
        for bus in buses:
            stack.push_async_callback(bus.close)
            await bus.connect(60)
        waits, knocked = ProviderWakes(), ProviderWakes(buses[0].notify)
        await waits.listen(buses[1])
        with waits.waiting(TASK, "r-1") as event:
            async with asyncio.timeout(60):
                while not event.is_set():  # a subscription takes a moment to reach the server
                    knocked.wake(TASK, "r-1")
                    await asyncio.sleep(0.05)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; fal's server has no event for it."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)


async def test_an_attempt_that_is_woken_looks_at_once_and_asks_fal_itself(
    fal: FalServer, checks: ImageChecks, signer: tuple[Signer, str], tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        settings = ProviderSettings(
            fal_key="fal-tests",
            fal_url=fal.url,
            fal_webhook_url="https://atelier.example/in",
            fal_webhook_listen="127.0.0.1:0",
            fal_keys_url=signer[1],
            fetch_allow_private=(fal.host,),
            provider_poll_seconds=60.0,
        )
        wakes = ProviderWakes()
        kit = ProviderKit.from_settings(settings, checks, stack, wakes)
        bus = Bus("")
        stack.push_async_callback(bus.close)
        address = await open_fal_door(settings, wakes, bus, stack)
        attempt: FakeAttempt = drawing(tmp_path)
        fal.queue_looks, fal.running_looks, fal.never = 0, 0, True
        running = asyncio.create_task(fal_standard.handlers(kit)[TASK_TYPE_GENERATION].run(attempt))
        await attempt.until("ACCEPTED")
        [request] = fal.requests.values()
        assert request.webhook == f"https://atelier.example/in/webhooks/fal/{attempt.job_id}"
        body = payload(request.id)
        async with httpx.AsyncClient() as client:
            door = f"http://{address}/webhooks/fal/{attempt.job_id}"
            # It is not done yet, whatever the knock says: fal is asked, and the attempt goes on waiting.
            looks = request.looks
            assert (
                await client.post(door, content=body, headers=signer[0].headers(request.id, body))
            ).status_code == 200
            await until(lambda: request.looks > looks)
            assert not running.done()
            fal.never = False
            assert (
                await client.post(door, content=body, headers=signer[0].headers(request.id, body))
            ).status_code == 200
            assert (await client.post(door, content=body)).status_code == 400
            assert (await client.get(door)).status_code == 405
        async with asyncio.timeout(60):
            await running
        assert fal.submits == 1


async def test_there_is_no_door_without_a_public_address() -> None:
    async with AsyncExitStack() as stack:
        bus = Bus("")
        stack.push_async_callback(bus.close)
        assert await open_fal_door(ProviderSettings(fal_key="k"), ProviderWakes(), bus, stack) == ""


async def test_a_body_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.providers.fal_webhooks._MAX_BODY", 100)
    async with AsyncExitStack() as stack:
        webhooks = FalWebhooks(FalKeys("http://127.0.0.1:9/keys"), ProviderWakes())
        address = await serve_webhooks(webhooks.app(), "127.0.0.1:0", stack)
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"http://{address}/webhooks/fal/{TASK}", content=b"x" * 200)
            assert answer.status_code == 413
