"""Who is calling, what they may do, and tokens for the services themselves.

Tokens are JWTs. HS256 ones are signed with the mesh's own secret; RS256, ES256 and EdDSA ones are checked against a
JWKS. The algorithm is chosen by the key, never by the token: a token that names another one is refused.
"""

from __future__ import annotations

import contextvars
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt

from meshkit.errors import MeshError, forbidden, unauthenticated, unavailable
from meshkit.jwks import Jwks, KeysUnavailableError

if TYPE_CHECKING:
    from meshkit.config import MeshSettings

READ, WRITE, ADMIN, OPERATOR, SUPPORT, WORKER, MESH = "read", "write", "admin", "operator", "support", "worker", "mesh"
SCOPES = frozenset({READ, WRITE, ADMIN, OPERATOR, SUPPORT, WORKER, MESH})
TENANT_KEY = "x-atelier-tenant"
LEEWAY_SECONDS = 30

# What a scope brings with it.
_IMPLIED: Mapping[str, frozenset[str]] = {
    MESH: SCOPES,
    OPERATOR: frozenset({READ, WRITE, ADMIN, SUPPORT}),
    SUPPORT: frozenset({READ}),
    ADMIN: frozenset({READ, WRITE}),
}

# A tenant names a folder of the object store: no separator, no leading dot.
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_CACHE_SIZE = 4096
_CACHE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose token was verified.

    Attributes:
        subject: Who it is.
        tenant: Tenant of the token, empty for one that has none (services, workers).
        scopes: Scopes as the token names them, whichever of its claims does.
        queues: Queues that a worker is bound to; None for no bound.
        jti: Identifier of the token, by which it may be revoked.
    """

    subject: str
    tenant: str
    scopes: frozenset[str]
    queues: frozenset[str] | None = None
    jti: str = ""
    effective: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        implied = (_IMPLIED.get(scope, frozenset()) for scope in self.scopes)
        object.__setattr__(self, "effective", self.scopes.union(*implied))

    def has(self, scope: str) -> bool:
        """Whether the caller holds a scope, by name or through another one."""
        return scope in self.effective


@dataclass(frozen=True, slots=True)
class CallerContext:
    """The current call: its caller, and the tenant that a service names for it."""

    principal: Principal
    named_tenant: str = ""


_call: contextvars.ContextVar[CallerContext | None] = contextvars.ContextVar("atelier_call", default=None)


def enter(principal: Principal, named_tenant: str = "") -> contextvars.Token[CallerContext | None]:
    """Note the caller of the current work.

    Args:
        principal: The caller.
        named_tenant: Metadata `x-atelier-tenant`; ignored unless the caller is a service.

    Raises:
        MeshError: `FORBIDDEN` where a service names something that is no tenant.
    """
    if MESH not in principal.scopes:
        named_tenant = ""
    elif named_tenant and not valid_tenant(named_tenant):
        raise forbidden("The named tenant is malformed", reason="BAD_TENANT")
    return _call.set(CallerContext(principal, named_tenant))


def leave(token: contextvars.Token[CallerContext | None]) -> None:
    """Undo `enter`."""
    _call.reset(token)


def current() -> Principal:
    """Return the caller of the current work.

    Raises:
        MeshError: `UNAUTHENTICATED` outside of an authenticated call.
    """
    call = _call.get()
    if call is None:
        raise unauthenticated("No token was given")
    return call.principal


def acting_tenant() -> str:
    """Return the tenant that the current work is done for: the token's, or the one that a service names in metadata.

    Raises:
        MeshError: `UNAUTHENTICATED` outside of an authenticated call, `FORBIDDEN` where there is no tenant.
    """
    tenant = named_tenant()
    if not tenant:
        raise no_tenant()
    return tenant


def named_tenant() -> str:
    """Return the tenant that the current work is done for, as `acting_tenant` does; empty where there is none.

    Raises:
        MeshError: `UNAUTHENTICATED` outside of an authenticated call.
    """
    call = _call.get()
    if call is None:
        raise unauthenticated("No token was given")
    return call.named_tenant or call.principal.tenant


def no_tenant() -> MeshError:
    """Build the error: the work needs a tenant, and the caller's token names none."""
    return forbidden("The token names no tenant", reason="NO_TENANT")


def valid_tenant(tenant: str) -> bool:
    """Whether a text may be a tenant's name."""
    return _TENANT.fullmatch(tenant) is not None


class Revocations:
    """Revoked token identifiers, one a line in a file that is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._revoked: frozenset[str] = frozenset()
        self._checked = 0.0

    def __call__(self, jti: str) -> bool:
        """Whether a token is revoked."""
        now = time.monotonic()
        if now - self._checked >= 1.0 or self._stamp is None:
            self._checked = now
            self._reread()
        return jti in self._revoked

    def _reread(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp == self._stamp:
                return
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            # Kubernetes replaces a mounted file by renames: keep what was known.
            return
        self._revoked = frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        self._stamp = stamp


class TokenVerifier:
    """Turns a bearer token into a principal.

    Args:
        secret: Key of HS256 tokens; without, they are refused.
        jwks: Keys of RS256, ES256 and EdDSA tokens; without, they are refused.
        issuer: `iss` that a token must carry, where given.
        audience: `aud` that a token must carry, where given.
        revoked: Tells whether a `jti` is revoked.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        jwks: Jwks | None = None,
        issuer: str | None = None,
        audience: str | None = None,
        revoked: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._revoked = revoked or (lambda _jti: False)
        self._clock = clock
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> TokenVerifier:
        """Build the verifier that the settings describe.

        Args:
            settings: Settings with at least one source of keys.

        Raises:
            ValueError: The settings name no key at all.
        """
        secret = settings.auth_secret.get_secret_value() if settings.auth_secret else None
        jwks = None
        if settings.auth_jwks_url or settings.auth_jwks_file:
            jwks = Jwks(url=settings.auth_jwks_url, path=settings.auth_jwks_file)
        if secret is None and jwks is None:
            raise ValueError("set ATELIER_AUTH_SECRET, ATELIER_AUTH_JWKS_URL or ATELIER_AUTH_JWKS_FILE")
        return cls(
            secret=secret,
            jwks=jwks,
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            revoked=Revocations(settings.auth_revoked_file) if settings.auth_revoked_file else None,
        )

    async def verify(self, token: str) -> Principal:
        """Verify a token.

        Args:
            token: The JWT, without `Bearer`.

        Returns:
            The caller.

        Raises:
            MeshError: `UNAUTHENTICATED` with what is wrong; `UNAVAILABLE` where the keys cannot be had.
        """
        now = self._clock()
        cached = self._cache.get(token)
        if cached is not None and cached[1] > now:
            self._cache.move_to_end(token)
            principal = cached[0]
        else:
            claims = await self._claims(token)
            principal = _principal(claims)
            self._remember(token, principal, min(now + _CACHE_SECONDS, float(claims["exp"]) + LEEWAY_SECONDS))
        # Not cached with the token: a revocation holds at once.
        if principal.jti and self._revoked(principal.jti):
            raise unauthenticated("The token is revoked", reason="TOKEN_REVOKED")
        return principal

    def _remember(self, token: str, principal: Principal, until: float) -> None:
        self._cache[token] = (principal, until)
        self._cache.move_to_end(token)
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            key, algorithms = await self._key(header)
            return self._decode(token, key, algorithms)
        except jwt.ExpiredSignatureError:
            raise unauthenticated("The token has expired", reason="TOKEN_EXPIRED") from None
        except jwt.MissingRequiredClaimError as error:
            raise unauthenticated(f"The token lacks the claim {error.claim}", reason="TOKEN_CLAIMS") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise unauthenticated("The token is meant for another mesh", reason="TOKEN_AUDIENCE") from None
        except jwt.ImmatureSignatureError:
            raise unauthenticated("The token is not valid yet", reason="TOKEN_NOT_YET_VALID") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise unauthenticated("The token is not valid", reason="TOKEN_INVALID") from None

    async def _key(self, header: Mapping[str, Any]) -> tuple[Any, list[str]]:
        algorithm = header.get("alg")
        if algorithm == "HS256" and self._secret is not None:
            return self._secret, ["HS256"]
        if algorithm == "HS256" or self._jwks is None:
            raise jwt.InvalidAlgorithmError("no key for this algorithm")
        try:
            key = await self._jwks.find(header.get("kid"), str(algorithm))
        except KeysUnavailableError:
            raise unavailable("The keys that tokens are checked with are not reachable") from None
        if key is None:
            raise unauthenticated("The token is signed with an unknown key", reason="TOKEN_KEY_UNKNOWN")
        return key.key, [key.algorithm]

    def _decode(self, token: str, key: Any, algorithms: list[str]) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
        )
        return claims


class TokenIssuer:
    """Signs HS256 tokens with the mesh's secret.

    Args:
        secret: The secret, 32 bytes at least.
        issuer: Value of `iss`, where verifiers ask for one.
        audience: Value of `aud`, where verifiers ask for one.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        secret: str,
        issuer: str | None = None,
        *,
        audience: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def issue(
        self,
        subject: str,
        tenant: str,
        scopes: Iterable[str],
        ttl_seconds: float,
        queues: Iterable[str] | None = None,
    ) -> str:
        """Sign a token.

        Args:
            subject: Who will bear it.
            tenant: Tenant it is good for; empty for a service or a worker.
            scopes: Names out of `SCOPES`.
            ttl_seconds: How long it is good for.
            queues: Queues that a worker is bound to; None for no bound.

        Raises:
            ValueError: A scope or the tenant's name is none.
        """
        named = sorted(set(scopes))
        if unknown := set(named) - SCOPES:
            raise ValueError(f"unknown scope: {', '.join(sorted(unknown))}")
        if tenant and not valid_tenant(tenant):
            raise ValueError("a tenant's name has letters, digits and ._@- and begins with a letter or digit")
        now = int(self._clock())
        claims: dict[str, Any] = {
            "sub": subject,
            "tenant": tenant,
            "scopes": named,
            "iat": now,
            "exp": now + int(ttl_seconds),
            "jti": secrets.token_hex(16),
        }
        if queues is not None:
            claims["queues"] = sorted(set(queues))
        if self._issuer:
            claims["iss"] = self._issuer
        if self._audience:
            claims["aud"] = self._audience
        return jwt.encode(claims, self._secret, algorithm="HS256")


class ServiceTokens:
    """A service's own token, short-lived and signed anew well before it expires.

    Args:
        issuer: Signs it.
        subject: Name of the service.
        scopes: What it may do.
        tenant: Tenant it is good for, where it is bound to one.
        ttl_seconds: How long each token is good for.
        queues: Queues that a worker is bound to.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        issuer: TokenIssuer,
        subject: str,
        scopes: Iterable[str] = (MESH,),
        *,
        tenant: str = "",
        ttl_seconds: float = 600.0,
        queues: Iterable[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._subject = subject
        self._scopes = tuple(scopes)
        self._tenant = tenant
        self._ttl = ttl_seconds
        self._queues = None if queues is None else tuple(queues)
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    @classmethod
    def from_settings(
        cls,
        settings: MeshSettings,
        subject: str,
        scopes: Iterable[str],
        *,
        queues: Iterable[str] | None = None,
    ) -> ServiceTokens:
        """Build the tokens of a service that the settings describe.

        Args:
            settings: Settings with the secret that services sign with.
            subject: Name of the service.
            scopes: What it may do, as `meshkit.topology` names it.
            queues: Queues that a worker is bound to.

        Raises:
            MeshError: `UNAUTHENTICATED` without the secret.
        """
        if settings.auth_secret is None:
            raise unauthenticated("ATELIER_AUTH_SECRET is needed: the service signs its own token with it")
        secret = settings.auth_secret.get_secret_value()
        issuer = TokenIssuer(secret, settings.auth_issuer, audience=settings.auth_audience)
        return cls(issuer, subject, scopes, queues=queues)

    def token(self) -> str:
        """Return a token that is good for at least half of its lifetime more."""
        with self._lock:
            now = self._clock()
            if now >= self._renew_at:
                self._token = self._issuer.issue(self._subject, self._tenant, self._scopes, self._ttl, self._queues)
                self._renew_at = now + self._ttl / 2
            return self._token


def _principal(claims: Mapping[str, Any]) -> Principal:
    tenant = claims.get("tenant", "")
    if not isinstance(tenant, str) or (tenant and not valid_tenant(tenant)):
        raise unauthenticated("The token's tenant is malformed", reason="TOKEN_CLAIMS")
    queues = claims.get("queues")
    return Principal(
        subject=str(claims["sub"]),
        tenant=tenant,
        scopes=_scopes(claims),
        queues=None if queues is None else _names(queues),
        jti=str(claims.get("jti", "")),
    )


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes of a token: `scopes`, RFC 8693's `scope` and the `scp` of some identity providers together."""
    named = [claims[name] for name in ("scopes", "scope", "scp") if claims.get(name) is not None]
    return frozenset[str]().union(*map(_names, named)) & SCOPES


def _names(value: object) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    raise unauthenticated("The token's claims are malformed", reason="TOKEN_CLAIMS")
