"""Look names up by the system's resolver, each look-up in a thread of its own.

A resolver that does not answer holds its caller for as long as the system likes, whatever the caller's own limit is. In
the event loop's pool of threads a few such names would stop all that the process does in threads. Here they hold places
of their tenant, until the system lets go of them.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from meshkit.places import TenantPlaces

LOOKUPS = 64
LOOKUPS_PER_TENANT = 8


class NameLookups:
    """Gives the addresses of names.

    Args:
        lookups: Look-ups at a time.
        per_tenant: Those among them of one tenant.
    """

    def __init__(self, lookups: int = LOOKUPS, per_tenant: int = LOOKUPS_PER_TENANT) -> None:
        self._places = TenantPlaces(lookups, per_tenant)

    async def resolve(self, host: str, port: int, tenant: str) -> Sequence[str]:
        """Return the addresses of a name, each once; wait while the tenant has too many look-ups under way.

        Raises:
            socket.gaierror: as the system has it.
            UnicodeError: the name cannot exist.
        """
        await self._places.take(tenant)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def tell(found: Sequence[str], error: Exception | None) -> None:
            self._places.give_back(tenant)
            if answer.done():  # its caller has given up
                return
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            found: Sequence[str] = ()
            error: Exception | None = None
            try:
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(info[4][0]) for info in infos))
            except Exception as problem:
                error = problem
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found, error)

        try:
            # A daemon: a look-up that hangs does not hold up the end of the process.
            threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
        except BaseException:
            self._places.give_back(tenant)
            raise
        return await answer
