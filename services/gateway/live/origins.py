"""Which pages may open a WebSocket: browsers send credentials of any page, and no preflight asks first."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def may_connect(origin: str, host: str, allowed: Collection[str]) -> bool:
    """Tell whether a page may open a connection.

    Args:
        origin: What the browser says of the page; empty where no browser asks.
        host: The `Host` that it asked for.
        allowed: Origins that may call, as `https://shop.example`; `*` for any.
    """
    if not origin or "*" in allowed or origin.lower() in allowed:
        return True
    try:
        page, asked = urlsplit(origin), urlsplit(f"{urlsplit(origin).scheme}://{host}")
        port = _PORTS.get(page.scheme)
        return (page.hostname, page.port or port) == (asked.hostname, asked.port or port) and page.hostname is not None
    except ValueError:
        return False
