"""Who is asking, and which tasks exist for them. What another tenant owns is not found."""

from __future__ import annotations

from dataclasses import dataclass

from meshkit import auth
from meshkit.errors import MeshError, forbidden, invalid
from services.tasks.domain import TaskRecord
from services.tasks.errors import task_not_found


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a method.

    Attributes:
        subject: Who it is.
        tenant: Tenant it acts for; empty where it has none.
        reads_across: Whether it may see every tenant's tasks.
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
        """Return the caller of the call at hand."""
        principal = auth.current()
        try:
            tenant = auth.acting_tenant()
        except MeshError:
            tenant = ""
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
            raise forbidden("The token names no tenant", reason="NO_TENANT")
        return self.tenant

    def checked_tenant(self, tenant: str) -> str:
        """Return a tenant that the caller names, if it can be one.

        Raises:
            MeshError: `INVALID` for a malformed name.
        """
        if not auth.valid_tenant(tenant):
            raise invalid("task.origin_tenant_id", "is not a tenant's name", "tenant")
        return tenant

    def seen(self, record: TaskRecord | None, ident: object, *, write: bool = False) -> TaskRecord:
        """Return a task, if it exists for this caller.

        Args:
            record: The task, if there is one.
            ident: What was asked for.
            write: Whether it is to be changed.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        across = self.writes_across if write else self.reads_across
        if record is None or not (across or (self.tenant and record.tenant == self.tenant)):
            raise task_not_found(ident)
        return record
