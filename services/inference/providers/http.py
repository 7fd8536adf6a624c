"""HTTP to one provider: bounded, redirect-free, and sent exactly once where it costs money.

Whether a request was sent is read off the connection itself, not guessed from the kind of an error. A paid request goes
over a connection of its own: one that was kept open may have been closed by the other side just now, and nobody could
tell then whether the request had arrived.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meshkit.logging import get_logger
from meshkit.retry_after import asked_pause
from services.inference.providers.errors import Fault, ProviderError, fault_of_status

if TYPE_CHECKING:
    import httpx

_log = get_logger(__name__)

_TRIES = 4
_MAX_URL = 2048  # three of them fit into what is noted of a request
_FIRST_PAUSE = 0.25
_PASSING = frozenset({Fault.UNSENT, Fault.BROKEN, Fault.UNKNOWN, Fault.LIMITED, Fault.EMPTY})
_SENT = "send_request_headers.started"


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """What one exchange may take.

    Attributes:
        connect_seconds: To the open connection.
        seconds: In all, the answer's body included.
        max_bytes: Of the answer's body.
    """

    connect_seconds: float = 10.0
    seconds: float = 60.0
    max_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """An answer, whatever its status is.

    Attributes:
        provider: The provider's name, for sentences.
        status: Its status.
        headers: Its headers, by names in lower case.
        body: Its body.
        paid: Whether the request was one that may cost money.
    """

    provider: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    paid: bool = False

    @property
    def ok(self) -> bool:
        """Whether its status is a success."""
        return 200 <= self.status < 300

    @property
    def retry_after(self) -> float | None:
        """Seconds that its header asks for."""
        pause = asked_pause(self.headers.get("retry-after", ""), datetime.now(UTC))
        return None if pause is None else pause.total_seconds()

    def document(self) -> dict[str, Any]:
        """Return its body as a JSON object.

        Raises:
            ProviderError: It is none. After a success that may have cost money nobody knows what was taken.
        """
        found = self.json()
        if not isinstance(found, dict):
            fault = Fault.UNKNOWN if self.paid and self.ok else Fault.EMPTY
            raise ProviderError(fault, self.provider, http_status=self.status)
        return found

    def json(self) -> Any:
        """Return its body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def error(self, fault: Fault | None = None, reason: str = "", *, retry_after: float | None = None) -> ProviderError:
        """Return it as an error.

        Args:
            fault: What it means; what its status means where absent.
            reason: The provider's own words.
            retry_after: Seconds that its body asks for; those of its header where absent.
        """
        meant = fault or fault_of_status(self.status, paid=self.paid)
        return ProviderError(
            meant,
            self.provider,
            # Of an account, which is the installation's and not the caller's, nothing is told: some repeat the key.
            "" if meant is Fault.DENIED else reason,
            retry_after=self.retry_after if retry_after is None else retry_after,
            http_status=self.status,
        )


class ProviderHttp:
    """The connections of one worker to one provider.

    Args:
        provider: The provider's name, for sentences and logs (`fal`).
        base_url: Its address; credentials go to this origin and to no other.
        headers: What every request carries: the credentials.
        limits: What one exchange may take.
    """

    def __init__(
        self, provider: str, base_url: str, headers: Mapping[str, str], limits: ExchangeLimits | None = None
    ) -> None:
        self.provider = provider
        self._base = base_url.rstrip("/")
        self._origin = origin_of(self._base)
        if self._origin is None:
            raise ValueError(f"the address of {provider} must be http:// or https:// with a host")
        self._headers = dict(headers)
        self._limits = limits or ExchangeLimits()
        self._clients: dict[bool, httpx.AsyncClient] = {}

    def own(self, url: object) -> str | None:
        """Return an address that the provider named, where its origin is the configured one; else None."""
        return url if isinstance(url, str) and len(url) <= _MAX_URL and origin_of(url) == self._origin else None

    async def pay(
        self,
        path: str,
        *,
        document: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> ProviderReply:
        """Send a POST that may cost money, exactly once.

        Args:
            path: Below the base address.
            document: Body, as JSON.
            content: Body, where it is not JSON.
            headers: Headers beside the credentials.
            params: Query.
            seconds: Limit of the whole exchange where it is not the usual one.

        Returns:
            The answer, whatever its status is.

        Raises:
            ProviderError: `UNSENT` where nothing was sent; `UNKNOWN` where it was sent and no answer came.
        """
        body = content if document is None else json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        typed = {} if document is None else {"content-type": "application/json"}
        return await self._once(
            "POST", self._base + path, body, {**typed, **(headers or {})}, params, paid=True, seconds=seconds
        )

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None, tries: int = _TRIES) -> ProviderReply:
        """Ask, and ask again where nothing or a passing error came.

        Args:
            path: Below the base address, or an address that `own` returned.
            headers: Headers beside the credentials.
            tries: Requests at most.

        Returns:
            The answer: a success, or an error that does not pass.

        Raises:
            ProviderError: No answer came.
        """
        return await self._repeated("GET", path, headers, tries)

    async def put(self, path: str, *, tries: int = 2) -> ProviderReply:
        """Send a PUT that may be repeated; as `get`."""
        return await self._repeated("PUT", path, None, tries)

    async def upload(self, url: str, content: bytes, content_type: str, *, seconds: float) -> ProviderReply:
        """Send a file to an address that the provider named for it: without the credentials, which are for its origin.

        Args:
            url: The address; of another origin than the provider's it must be https.
            content: The file.
            content_type: Its media type.
            seconds: Limit of the whole exchange.

        Raises:
            ProviderError: It may not go there, or no answer came.
        """
        if not named_address(url, self._origin):
            raise ProviderError(Fault.EMPTY, self.provider)
        bare = ProviderHttp(self.provider, url, {}, self._limits)
        try:
            typed = {"content-type": content_type}
            return await bare._once("PUT", url, content, typed, None, paid=False, seconds=seconds)
        finally:
            await bare.close()

    def names(self, url: object) -> str | None:
        """Return an address of a file that the provider named, of its own origin or by https; else None."""
        return url if isinstance(url, str) and named_address(url, self._origin) else None

    async def close(self) -> None:
        """Close the connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def _repeated(self, method: str, path: str, headers: Mapping[str, str] | None, tries: int) -> ProviderReply:
        url = path if "://" in path else self._base + path
        if self.own(url) is None:
            raise ProviderError(Fault.EMPTY, self.provider)
        for tried in range(1, tries + 1):
            wait: float | None = None
            try:
                reply = await self._once(method, url, None, headers or {}, None, paid=False, seconds=None)
                if reply.ok or tried == tries or fault_of_status(reply.status, paid=False) not in _PASSING:
                    return reply
                wait = reply.retry_after
            except ProviderError as error:
                if tried == tries or error.fault not in _PASSING:
                    raise
            ceiling = _FIRST_PAUSE * 2.0 ** (tried - 1)
            pause = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret
            await asyncio.sleep(max(pause, min(wait or 0.0, self._limits.seconds)))
        raise AssertionError("every way through the loop returns or raises")

    async def _once(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
        *,
        paid: bool,
        seconds: float | None,
    ) -> ProviderReply:
        import httpx  # noqa: PLC0415 -- a fifth of a second, which the device's worker never needs

        sent = False

        async def trace(event: str, _info: Mapping[str, Any]) -> None:
            nonlocal sent
            sent = sent or event.endswith(_SENT)

        try:
            async with (
                asyncio.timeout(self._limits.seconds if seconds is None else seconds),
                self._client(paid=paid).stream(
                    method,
                    url,
                    content=body,
                    headers={"accept": "application/json", **headers},
                    params=params,
                    extensions={"trace": trace},
                ) as response,
            ):
                data = await self._body(response, paid=paid)
                named = {name.lower(): value for name, value in response.headers.items()}
                return ProviderReply(self.provider, response.status_code, named, data, paid)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, TimeoutError) as error:
            fault = Fault.UNSENT if not sent else Fault.UNKNOWN if paid else Fault.BROKEN
            # The exception's own text may repeat the address; its kind says enough.
            _log.warning(
                "provider_call_failed", provider=self.provider, method=method, sent=sent, cause=type(error).__name__
            )
            raise ProviderError(fault, self.provider) from None

    async def _body(self, response: httpx.Response, *, paid: bool) -> bytes:
        most, size, parts = self._limits.max_bytes, 0, []
        if "," not in response.headers.get("content-encoding", ""):  # each coding multiplies what a piece becomes
            async for part in response.aiter_bytes(65536):
                size += len(part)
                if size > most:
                    break
                parts.append(part)
            else:
                return b"".join(parts)
        _log.warning("provider_answer_refused", provider=self.provider, most=most)
        raise ProviderError(Fault.UNKNOWN if paid else Fault.EMPTY, self.provider, http_status=response.status_code)

    def _client(self, *, paid: bool) -> httpx.AsyncClient:
        import httpx  # noqa: PLC0415 -- as above

        if paid not in self._clients:
            self._clients[paid] = httpx.AsyncClient(
                headers={**self._headers, "user-agent": "atelier"},
                follow_redirects=False,
                trust_env=False,
                timeout=httpx.Timeout(None, connect=self._limits.connect_seconds),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0 if paid else 32),
            )
        return self._clients[paid]


def named_address(url: str, origin: tuple[str, str, int] | None) -> bool:
    """Whether a provider may name an address for a file: one of its own origin, or one by https."""
    found = origin_of(url) if len(url) <= _MAX_URL else None
    return found is not None and (found == origin or found[0] == "https")


def origin_of(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address; None where it is no plain http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if parts.username is not None or parts.password is not None or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port
