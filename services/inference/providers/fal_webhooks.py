"""The door that fal knocks at when a request has ended: `POST /webhooks/fal/{task}`.

Each knock is signed: Ed25519, by one of the keys that fal publishes, over the identifier of the request, fal's user,
the moment and the hash of the raw body. One that is not, or that is older than five minutes, changes nothing. Nor does
one that is, but for this: the attempt that waits for exactly this request of exactly this task asks fal at once, and
takes what fal answers. What the body says is not believed. A knock that is repeated finds nobody who waits.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, cast

import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from meshkit.bus import Bus
from meshkit.logging import get_logger
from services.inference.providers.config import ProviderSettings
from services.inference.providers.errors import ProviderError
from services.inference.providers.fal_queue import NAME, WEBHOOK_PATH
from services.inference.providers.http import ExchangeLimits, ProviderHttp
from services.inference.providers.wakes import ProviderWakes

_log = get_logger(__name__)

WINDOW_SECONDS = 300.0
KEYS_SECONDS = 24 * 3600.0
# A forged signature must not have the keys fetched each time.
_REFETCH_SECONDS = 60.0
_MAX_BODY = 32 * 1024 * 1024
_BODY_SECONDS = 15.0
_MAX_KEYS = 32
_TASK = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_REQUEST = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MOMENT = re.compile(r"[0-9]{1,15}")
_SIGNATURE = re.compile(r"[0-9A-Fa-f]{128}")
_NAMES = ("request-id", "user-id", "timestamp", "signature")


class FalKeys:
    """The keys that fal signs by, kept for a day.

    Args:
        url: Address of the document (JWKS).
        clock: Monotonic seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: tuple[Ed25519PublicKey, ...] = ()
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, signature: bytes, message: bytes) -> bool:
        """Tell whether one of the keys made a signature; keys that may be old are fetched again."""
        if self._clock() - self._fetched > KEYS_SECONDS:
            await self._fetch()
        if self._made(signature, message):
            return True
        known = self._keys
        await self._fetch()
        return self._keys != known and self._made(signature, message)

    def _made(self, signature: bytes, message: bytes) -> bool:
        for key in self._keys:
            with contextlib.suppress(InvalidSignature):
                key.verify(signature, message)
                return True
        return False

    async def _fetch(self) -> None:
        async with self._lock:
            if self._clock() - self._tried < _REFETCH_SECONDS:
                return
            self._tried = self._clock()
            http = ProviderHttp(NAME, self._url, {}, ExchangeLimits(5.0, 10.0, 1 << 20))
            try:
                reply = await http.get("")
                if reply.ok:
                    self._keys = _keys_of(reply.document())
                    self._fetched = self._clock()
            except ProviderError as error:
                # Those that are known stay.
                _log.warning("fal_keys_not_fetched", fault=error.fault.value)
            finally:
                await http.close()


class FalWebhooks:
    """Judges knocks.

    Args:
        keys: The keys that fal signs by.
        wakes: Wakes whoever waits.
        now: Seconds since 1970.
    """

    def __init__(self, keys: FalKeys, wakes: ProviderWakes, now: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._wakes = wakes
        self._now = now

    def app(self) -> Starlette:
        """Return the door as an application."""
        return Starlette(routes=[Route(f"{WEBHOOK_PATH}{{task}}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return Response(status_code=408)
        if body is None:
            return Response(status_code=413)
        status = await self.receive(request.path_params["task"], request.headers, body)
        return Response(status_code=status)

    async def receive(self, task: str, headers: Mapping[str, str], body: bytes) -> int:
        """Judge a knock; return the status of the answer.

        Args:
            task: Identifier of the task, as the address has it.
            headers: Headers by names in lower case.
            body: The raw body.
        """
        knock = _Knock(*(headers.get(f"x-fal-webhook-{name}", "") for name in _NAMES))
        if not (_TASK.fullmatch(task) and _REQUEST.fullmatch(knock.request) and _MOMENT.fullmatch(knock.moment)):
            return 400
        if (why := await self._doubt(knock, body)) is not None:
            _log.info("fal_webhook_refused", why=why)
            return 401
        if _named(body) != knock.request:
            return 400
        self._wakes.wake(task, knock.request)
        return 200

    async def _doubt(self, knock: _Knock, body: bytes) -> str | None:
        """Return why a knock is not fal's, or not of now; None where it is."""
        if abs(self._now() - int(knock.moment)) > WINDOW_SECONDS:
            return "window"
        if not _SIGNATURE.fullmatch(knock.signature):
            return "signature"
        digest = (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
        message = "\n".join((knock.request, knock.user, knock.moment, digest)).encode()
        return None if await self._keys.verify(bytes.fromhex(knock.signature), message) else "signature"


class _Knock(NamedTuple):
    """What the headers of a knock say; in the order of `_NAMES`."""

    request: str
    user: str
    moment: str
    signature: str


async def open_fal_door(settings: ProviderSettings, wakes: ProviderWakes, bus: Bus, stack: AsyncExitStack) -> str:
    """Serve the door where the installation has a key of fal and a public address, until the stack is closed.

    Args:
        settings: The worker's settings.
        wakes: The requests that the worker waits for.
        bus: Carries wakes between workers.
        stack: Takes what needs closing.

    Returns:
        The bound address; empty where there is no door.
    """
    if not settings.fal_webhook_url or not settings.fal_key.get_secret_value():
        return ""
    await wakes.listen(bus)
    webhooks = FalWebhooks(FalKeys(settings.fal_keys_url), wakes)
    address = await serve_webhooks(webhooks.app(), settings.fal_webhook_listen, stack)
    _log.info("fal_webhooks_served", address=address)
    return address


async def serve_webhooks(app: Starlette, listen: str, stack: AsyncExitStack) -> str:
    """Serve the door until the stack is closed.

    Args:
        app: The door.
        listen: `host:port`; port 0 lets the system choose.
        stack: Takes what needs closing.

    Returns:
        The bound address.
    """
    host, _, port = listen.rpartition(":")
    config = uvicorn.Config(
        app, host=host.strip("[]"), port=int(port), ws="none", loop="none", lifespan="off", access_log=False,
        log_config=None, log_level="error", server_header=False, limit_concurrency=64, timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = _Door(config)
    serving = asyncio.create_task(server.serve(), name="fal-webhooks")

    async def end() -> None:
        server.should_exit = True
        await asyncio.wait([serving])

    stack.push_async_callback(end)
    while not server.started and not serving.done():  # noqa: ASYNC110 -- uvicorn offers no event for it
        await asyncio.sleep(0.01)
    if serving.done():
        raise ValueError(f"ATELIER_FAL_WEBHOOK_LISTEN: {listen} cannot be served on")
    bound = cast("Any", server.servers[0]).sockets[0].getsockname()
    return f"{bound[0]}:{bound[1]}"


class _Door(uvicorn.Server):
    """A uvicorn that leaves signals to the process's own handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _body(request: Request) -> bytes | None:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def _named(body: bytes) -> object:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document.get("request_id") if isinstance(document, dict) else None


def _keys_of(document: Mapping[str, Any]) -> tuple[Ed25519PublicKey, ...]:
    entries = document.get("keys")
    keys = []
    for entry in entries[:_MAX_KEYS] if isinstance(entries, list) else []:
        text = entry.get("x") if isinstance(entry, dict) else None
        if isinstance(text, str):
            with contextlib.suppress(ValueError):
                keys.append(Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))
    return tuple(keys)
