"""Public keys that tokens of other issuers are checked with: a JWKS from a file or an address, cached and renewed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from meshkit.logging import get_logger

_log = get_logger(__name__)

TTL_SECONDS = 300.0
MIN_REFETCH_SECONDS = 10.0  # an unknown key id must not let a caller flood the issuer
FETCH_TIMEOUT_SECONDS = 5.0
MAX_BYTES = 1024 * 1024

# The one algorithm that a key is used with, by its type and curve. A public document holds no symmetric keys.
_ALGORITHMS: Mapping[tuple[str, str], str] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


class KeysUnavailableError(Exception):
    """No keys are available: no document could be read yet."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and the one algorithm it is used with."""

    kid: str | None
    algorithm: str
    key: Any


class Jwks:
    """Keys by their id.

    Args:
        url: Address of the document.
        path: File with the document, read again when it changes; wins over `url`.
        clock: Monotonic seconds.
    """

    def __init__(
        self, *, url: str | None = None, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._path = path
        self._clock = clock
        self._keys: tuple[PublicKey, ...] = ()
        self._fresh_until = 0.0
        self._last_attempt = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        self._loaded = False
        self._lock = asyncio.Lock()

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """Find the key that a token was signed with.

        Args:
            kid: The token's key id; without, the document must have exactly one key for the algorithm.
            algorithm: The token's algorithm.

        Returns:
            The key, or None where no key of this id fits this algorithm.

        Raises:
            KeysUnavailableError: No document could be read yet.
        """
        now = self._clock()
        if self._path is not None or now >= self._fresh_until:
            await self._renew(self._last_attempt)
        found = self._pick(kid, algorithm)
        if found is None and self._url is not None and self._path is None:
            await self._renew(self._last_attempt)
            found = self._pick(kid, algorithm)
        if found is None and not self._loaded:
            raise KeysUnavailableError
        return found

    def _pick(self, kid: str | None, algorithm: str) -> PublicKey | None:
        fitting = [key for key in self._keys if key.algorithm == algorithm and (kid is None or key.kid == kid)]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None

    async def _renew(self, seen_attempt: float) -> None:
        async with self._lock:
            if self._path is not None:
                await asyncio.to_thread(self._read_file, self._path)
                return
            now = self._clock()
            # Another call fetched the document while this one waited, or shortly before.
            if self._last_attempt != seen_attempt or now - self._last_attempt < MIN_REFETCH_SECONDS:
                return
            self._last_attempt = now
            await self._fetch()

    def _read_file(self, path: Path) -> None:
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._accept(path.read_bytes())
                self._stamp = stamp
        except (OSError, ValueError) as error:
            _log.warning("jwks_file_unreadable", error=type(error).__name__)

    async def _fetch(self) -> None:
        import httpx  # noqa: PLC0415 -- a fifth of a second that most processes never need

        try:
            async with (
                httpx.AsyncClient(timeout=FETCH_TIMEOUT_SECONDS, follow_redirects=False) as client,
                client.stream("GET", str(self._url)) as response,
            ):
                response.raise_for_status()
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise ValueError("document too large")
            self._accept(body)
        except (httpx.HTTPError, ValueError) as error:
            # The known keys stay valid; the next attempt follows after the refetch interval.
            _log.warning("jwks_not_fetched", error=type(error).__name__)

    def _accept(self, body: bytes) -> None:
        document = json.loads(body)
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("not a JWKS")
        self._keys = tuple(key for entry in document["keys"] if (key := _public_key(entry)) is not None)
        self._fresh_until = self._clock() + TTL_SECONDS
        self._loaded = True


def _public_key(entry: object) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kind = (str(entry.get("kty")), str(entry.get("crv", "")))
    algorithm = _ALGORITHMS.get(kind)
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    # Only public parts are kept, also where a document contains a private key.
    public = {name: value for name, value in entry.items() if name in {"kty", "crv", "n", "e", "x", "y", "kid"}}
    try:
        return PublicKey(entry.get("kid"), algorithm, jwt.PyJWK(public, algorithm=algorithm).key)
    except (jwt.PyJWTError, ValueError):
        return None
