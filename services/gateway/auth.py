"""Check who sends a request, and whether the token allows its route.

Tokens are checked here so that a bad one costs no RPC, and again by the service that the token is forwarded to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshkit import tracing
from meshkit.auth import Principal
from meshkit.errors import ErrorKind, MeshError, forbidden, unauthenticated
from meshkit.quotas import TenantRates


class Verifier(Protocol):
    """What turns a token into a caller."""

    async def verify(self, token: str) -> Principal:
        """Return the caller; raises `MeshError`."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayCaller:
    """A caller whose token holds.

    Attributes:
        principal: Who it is.
        token: The token as it came, to be forwarded.
    """

    principal: Principal
    token: str

    @property
    def tenant(self) -> str:
        """The caller's tenant.

        Raises:
            MeshError: `FORBIDDEN` where the token names none.
        """
        if not self.principal.tenant:
            raise forbidden("The token names no tenant", reason="NO_TENANT")
        return self.principal.tenant


class Authenticator:
    """Checks the `Authorization` header of requests, and counts the requests of tenants.

    Args:
        verifier: Checks tokens.
        rates: How many requests a tenant may make; None for any number.
    """

    def __init__(self, verifier: Verifier, rates: TenantRates | None = None) -> None:
        self._verifier = verifier
        self._rates = rates

    async def admit(self, authorization: str, scope: str) -> GatewayCaller:
        """Admit a caller.

        Args:
            authorization: Value of the `Authorization` header, empty where there is none.
            scope: Scope that the route asks for; empty for any authenticated caller.

        Raises:
            MeshError: `UNAUTHENTICATED`, `FORBIDDEN` with the scope that is missing, or `EXHAUSTED` for a tenant that
                makes too many requests.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if not authorization:
            raise unauthenticated("A bearer token is required: send `Authorization: Bearer <token>`", "TOKEN_MISSING")
        # Clients of the Celery-compatible statistics send `Token`.
        if scheme.lower() not in {"bearer", "token"} or not token:
            raise unauthenticated("The Authorization header must be `Bearer <token>`", "TOKEN_MALFORMED")
        principal = await self._verifier.verify(token)
        tracing.assign_tenant(principal.tenant)
        if self._rates is not None and principal.tenant:
            self._rates.take(principal.tenant)
        _hold_to_scope(principal, scope)
        return GatewayCaller(principal, token)

    async def check(self, token: str, scope: str) -> None:
        """Check again a token that was admitted: it may have expired or been revoked.

        Raises:
            MeshError: As `admit`.
        """
        _hold_to_scope(await self._verifier.verify(token), scope)


def _hold_to_scope(principal: Principal, scope: str) -> None:
    if scope and not principal.has(scope):
        raise MeshError(
            ErrorKind.FORBIDDEN,
            f"The token lacks the scope '{scope}'",
            reason="SCOPE_MISSING",
            metadata={"scope": scope},
        )
