"""Signed URLs of stored objects: they expire, and work without a token, so that `img` and `video` may show them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meshkit.config import MeshSettings
from meshkit.errors import forbidden, not_found
from meshkit.logging import get_logger

_log = get_logger(__name__)

# Where the gateway serves them.
MEDIA_ROUTE = "/api/v1/media"
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

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> MediaSigner:
        """Return the signer of a service; without a secret of the mesh it opens its own tokens alone."""
        secret = settings.media_secret or settings.auth_secret
        if secret is None:
            _log.warning("media_secret_missing")
        key = secret.get_secret_value().encode() if secret is not None else secrets.token_bytes(32)
        return cls(key, ttl_seconds=settings.media_url_ttl_seconds)

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


class MediaLinks:
    """Makes addresses of stored objects that work as they are.

    Args:
        base: Public address of the gateway.
        signer: Issues the tokens.
    """

    def __init__(self, base: str, signer: MediaSigner) -> None:
        self._base = f"{base.rstrip('/')}{MEDIA_ROUTE}/"
        self._signer = signer

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> MediaLinks | None:
        """Return the links of a service; None where it is not told under which address the gateway is reached."""
        return cls(settings.public_url, MediaSigner.from_settings(settings)) if settings.public_url else None

    @classmethod
    def relative(cls, settings: MeshSettings) -> MediaLinks:
        """Return links that work in a page of the gateway, for a mesh that is not told its public address."""
        return cls("", MediaSigner.from_settings(settings))

    def url(self, tenant: str, path: str) -> str:
        """Return the address of an object."""
        return self._base + self._signer.token(tenant, path)

    def urls(self, tenant: str, paths: Iterable[str]) -> list[str]:
        """Return the addresses of objects, in their order; an empty path has an empty address."""
        return [self.url(tenant, path) if path else "" for path in paths]
