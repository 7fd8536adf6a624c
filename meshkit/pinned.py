"""Connect to addresses that were checked, and to no others.

httpx loads in a fifth of a second, which most processes never need: it is imported where it is used.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpcore
    import httpx


def pinned_client(addresses: Sequence[str], seconds: float) -> httpx.AsyncClient:
    """Return a client that reaches these addresses alone, and gives up after some seconds."""
    import httpx  # noqa: PLC0415 -- only in a process that fetches

    return httpx.AsyncClient(
        transport=_pinned_transport(addresses), follow_redirects=False, trust_env=False, timeout=seconds
    )


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    import httpx  # noqa: PLC0415 -- only in a process that fetches

    # Reading the authorities' certificates takes longer than many fetches.
    return httpx.create_ssl_context(trust_env=False)


def _pinned_transport(addresses: Sequence[str]) -> httpx.AsyncBaseTransport:
    import httpcore  # noqa: PLC0415 -- as httpx
    import httpx  # noqa: PLC0415 -- only in a process that fetches

    class PinnedBackend(httpcore.AsyncNetworkBackend):
        """Connects to checked addresses, whatever the name resolves to now; Host and SNI keep the name."""

        def __init__(self) -> None:
            self._inner = httpcore.AnyIOBackend()

        async def connect_tcp(
            self,
            host: str,  # noqa: ARG002 -- on purpose: the name is not resolved again
            port: int,
            timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
            local_address: str | None = None,
            socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
        ) -> httpcore.AsyncNetworkStream:
            failure: Exception | None = None
            for address in addresses:
                try:
                    return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                    failure = error
            raise failure or httpcore.ConnectError("no address")

        async def connect_unix_socket(self, *_args: Any, **_kwargs: Any) -> httpcore.AsyncNetworkStream:
            raise httpcore.ConnectError("not allowed")

        async def sleep(self, seconds: float) -> None:
            await self._inner.sleep(seconds)

    transport = httpx.AsyncHTTPTransport(verify=_ssl_context(), trust_env=False, retries=0)
    # httpx has no argument for the backend; its pool is the documented class of httpcore, made the same way.
    transport._pool = httpcore.AsyncConnectionPool(  # noqa: SLF001 -- as above
        ssl_context=_ssl_context(), network_backend=PinnedBackend(), max_connections=1
    )
    return transport
