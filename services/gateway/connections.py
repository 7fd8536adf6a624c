"""How many connections the gateway holds, in all and from one address, and which of them make room for new ones.

A connection at rest costs its peer nothing. So when a bound is reached, those at rest are closed, first the ones that
never sent a request, the oldest first; a new connection is turned away only where all others are at work.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Protocol

from meshkit.metrics import counter, gauge

# Descriptors for all else: services, the object store, files, the log.
_SPARE_DESCRIPTORS = 192
# Connections that were turned away and wait for their peer to read the answer.
_MOST_LINGERING = 128
_IPV6_SITE_BITS = 64

_open = gauge("http_connections", "Open connections.")
_closed = counter(
    "http_connections_closed", "Connections that the gateway closed or turned away, by cause.", ("cause",)
)


class HttpConnection(Protocol):
    """What is counted."""

    def make_room(self) -> None:
        """Close; there is no request to answer."""
        ...


class _Address:
    """The connections from one address.

    Attributes:
        count: How many there are.
        silent: Those that never sent a request, the oldest first.
        resting: Those that wait for their next request, the longest first.
    """

    __slots__ = ("count", "resting", "silent")

    def __init__(self) -> None:
        self.count = 0
        self.silent: OrderedDict[HttpConnection, None] = OrderedDict()
        self.resting: OrderedDict[HttpConnection, None] = OrderedDict()


class ConnectionGate:
    """Counts connections and turns away those for which there is no room.

    Args:
        total: Most connections.
        per_address: Most connections from one address; 0 for no bound.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._addresses: dict[str, _Address] = {}
        self._of: dict[HttpConnection, str] = {}
        self._lingering: set[HttpConnection] = set()

    @property
    def count(self) -> int:
        """Connections that are open now."""
        return len(self._of)

    def admit(self, connection: HttpConnection, host: str) -> bool:
        """Count a new connection, at rest until its first request.

        Args:
            connection: The connection.
            host: Its peer's address.

        Returns:
            Whether there is room for it; where not, it is not counted.
        """
        key = _site(host)
        record = self._addresses.get(key) or _Address()
        if self._per_address and record.count >= self._per_address and not self._make_room(record):
            note_closed("address_full")
            return False
        if self.count >= self._total and not self._make_room_anywhere():
            note_closed("full")
            return False
        # Not before: what made room may have been the last from this address.
        record = self._addresses.setdefault(key, record)
        record.count += 1
        record.silent[connection] = None
        self._of[connection] = key
        _open.set(self.count)
        return True

    def busy(self, connection: HttpConnection) -> None:
        """Note that a request came: until it is answered, the connection is not closed for others."""
        if (record := self._record(connection)) is not None:
            record.silent.pop(connection, None)
            record.resting.pop(connection, None)

    def rest(self, connection: HttpConnection) -> None:
        """Note that the connection waits for its next request."""
        if (record := self._record(connection)) is not None:
            record.resting[connection] = None

    def gone(self, connection: HttpConnection) -> None:
        """Note that the connection is closed, or about to be."""
        self._lingering.discard(connection)
        record = self._record(connection)
        if record is None:
            return
        key = self._of.pop(connection)
        record.silent.pop(connection, None)
        record.resting.pop(connection, None)
        record.count -= 1
        if not record.count:
            del self._addresses[key]
        _open.set(self.count)

    def may_linger(self, connection: HttpConnection) -> bool:
        """Tell whether a connection may stay a moment for its peer to read the last answer.

        Those that are counted may; of those turned away only so many, since no bound holds for them.
        """
        if connection in self._of:
            return True
        if len(self._lingering) >= _MOST_LINGERING:
            return False
        self._lingering.add(connection)
        return True

    def _record(self, connection: HttpConnection) -> _Address | None:
        key = self._of.get(connection)
        return None if key is None else self._addresses[key]

    def _make_room(self, record: _Address) -> bool:
        for waiting in (record.silent, record.resting):
            if waiting:
                oldest = next(iter(waiting))
                self.gone(oldest)
                note_closed("made_room")
                oldest.make_room()
                return True
        return False

    def _make_room_anywhere(self) -> bool:
        # Whoever has most connections at rest gives one up.
        most = max(self._addresses.values(), key=lambda one: len(one.silent) + len(one.resting), default=None)
        return most is not None and self._make_room(most)


def note_closed(cause: str) -> None:
    """Count a connection that the gateway closed.

    Args:
        cause: Why, in one word of few.
    """
    _closed.labels(cause).inc()


def most_connections(wanted: int, descriptors: int) -> int:
    """Return how many connections fit the descriptors that the process may have.

    Args:
        wanted: Most connections, as set.
        descriptors: Descriptors; a request may take a second one, for its file or for the store.
    """
    return max(1, min(wanted, (descriptors - _SPARE_DESCRIPTORS) // 2))


def _site(host: str) -> str:
    # Who has one address of IPv6 has all 2^64 of its network.
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], _IPV6_SITE_BITS), strict=False))
    except ValueError:
        return host
