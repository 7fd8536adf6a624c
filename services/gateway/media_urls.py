"""Signed URLs of stored objects: they expire, and work without a token, so that `img` and `video` may show them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from meshkit.errors import forbidden, not_found

_TAG_BYTES = 16
_LABEL = b"atelier media url v1"


@dataclass(frozen=True, slots=True)
class Media:
    """What a valid token opens.

    Attributes:
        tenant: Tenant of the object.
        path: Its path.
        expires: When the token ends, seconds since the epoch.
    """

    tenant: str
    path: str
    expires: int


class MediaSigner:
    """Issues and opens media tokens: an HMAC-SHA-256, then tenant, expiry and path line by line, in base64url.

    Args:
        secret: The mesh's secret; the key is derived from it, so that no token of another kind opens a URL.
        ttl_seconds: How long a URL is good for at least.
        clock: Seconds since the epoch.
    """

    def __init__(self, secret: bytes, *, ttl_seconds: int, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.new(secret, _LABEL, hashlib.sha256).digest()
        self._ttl = ttl_seconds
        self._clock = clock

    def token(self, tenant: str, path: str) -> str:
        """Return a token that opens an object."""
        # Rounded up, so that a page that lists an image twice within the window gets one address and caches it.
        window = max(1, self._ttl // 4)
        expires = (int(self._clock()) + self._ttl + window) // window * window
        payload = f"{tenant}\n{expires}\n{path}".encode()
        return base64.urlsafe_b64encode(self._tag(payload) + payload).rstrip(b"=").decode("ascii")

    def open(self, token: str) -> Media:
        """Return what a token opens.

        Raises:
            MeshError: `NOT_FOUND` for a token that was never issued, `FORBIDDEN` for one that has expired.
        """
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise not_found("Media", "of this address") from None
        tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(payload)):
            raise not_found("Media", "of this address")
        tenant, expires, path = payload.decode().split("\n", 2)
        if int(expires) < self._clock():
            raise forbidden("This media URL has expired", reason="MEDIA_EXPIRED")
        return Media(tenant, path, int(expires))

    def _tag(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()[:_TAG_BYTES]
