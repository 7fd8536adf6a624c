"""The caller of a method, and which records exist for it. A record of another tenant is not found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from meshkit import auth
from meshkit.errors import MeshError, forbidden, invalid


class Owned(Protocol):
    """A record that belongs to a tenant."""

    @property
    def tenant(self) -> str:
        """The tenant."""
        ...


OwnedT = TypeVar("OwnedT", bound=Owned)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a method.

    Attributes:
        subject: Who it is.
        tenant: Tenant it acts for; empty where it has none.
        reads_across: Whether it may see every tenant's records.
        writes_across: Whether it may change them.
        is_operator: Whether it may change what belongs to the scheduler.
        is_service: Whether it is a service of the mesh.
    """

    subject: str
    tenant: str
    reads_across: bool = False
    writes_across: bool = False
    is_operator: bool = False
    is_service: bool = False

    @classmethod
    def of_call(cls) -> Caller:
        """Return the caller of the current call.

        Raises:
            MeshError: `UNAUTHENTICATED` outside of an authenticated call.
        """
        principal = auth.current()
        tenant = auth.named_tenant()
        service = auth.MESH in principal.scopes
        # A service that names a tenant acts for it, and sees no more than it.
        confined = service and bool(tenant)
        return cls(
            subject=principal.subject,
            tenant=tenant,
            reads_across=principal.has(auth.SUPPORT) and not confined,
            writes_across=principal.has(auth.OPERATOR) and not confined,
            is_operator=principal.has(auth.OPERATOR),
            is_service=service,
        )

    def require_tenant(self) -> str:
        """Return the tenant it acts for.

        Raises:
            MeshError: `FORBIDDEN` without one.
        """
        if not self.tenant:
            raise auth.no_tenant()
        return self.tenant

    def checked_tenant(self, tenant: str, path: str) -> str:
        """Return a tenant that the caller names, if it can be one.

        Args:
            tenant: The name.
            path: Path of the field that holds it, for the error.

        Raises:
            MeshError: `INVALID` for a malformed name.
        """
        if not auth.valid_tenant(tenant):
            raise invalid(path, "is not a tenant's name", "tenant")
        return tenant

    def tenant_of(self, named: str, path: str) -> str:
        """Return the tenant that a record is created for: the one that the request names, else the caller's own.

        Args:
            named: Tenant that the request names; empty where it names none.
            path: Path of the field that names it.

        Raises:
            MeshError: `FORBIDDEN` for another's, or where there is none; `INVALID` for what can be no tenant.
        """
        if not named or named == self.tenant:
            return self.require_tenant()
        if not self.writes_across:
            name = path.rpartition(".")[2]
            raise forbidden(f"{name} names another tenant than the token", reason="FOREIGN_TENANT")
        return self.checked_tenant(named, path)

    def listed_tenant(self, named: str | None) -> str | None:
        """Return the tenant whose records an operator's list holds; None for all.

        Args:
            named: Tenant that the request names in `origin_tenant_id`, if it names one.

        Raises:
            MeshError: `FORBIDDEN` for another's that the caller may not see.
        """
        if self.reads_across:
            return named
        tenant = self.require_tenant()
        if named not in (None, tenant):
            raise forbidden("origin_tenant_id names another tenant than the token", reason="FOREIGN_TENANT")
        return tenant

    def seen(
        self, record: OwnedT | None, ident: object, missing: Callable[[object], MeshError], *, write: bool = False
    ) -> OwnedT:
        """Return a record, if it exists for this caller.

        Args:
            record: The record, if there is one.
            ident: What was asked for.
            missing: Builds the error for an identifier that does not exist.
            write: Whether it is to be changed.

        Raises:
            MeshError: What `missing` builds.
        """
        across = self.writes_across if write else self.reads_across
        if record is None or not (across or (self.tenant and record.tenant == self.tenant)):
            raise missing(ident)
        return record
