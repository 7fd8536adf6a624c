"""Who is asking, and which workflows exist for them. What another tenant owns is not found."""

from __future__ import annotations

from dataclasses import dataclass

from meshkit import auth
from meshkit.errors import MeshError, forbidden, invalid
from services.workflows.errors import workflow_not_found
from services.workflows.store import WorkflowSnapshot


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a method.

    Attributes:
        subject: Who it is.
        tenant: Tenant it acts for; empty where it has none.
        reads_across: Whether it may see every tenant's workflows.
        writes_across: Whether it may change them.
    """

    subject: str
    tenant: str
    reads_across: bool = False
    writes_across: bool = False

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
            raise invalid("workflow.origin_tenant_id", "is not a tenant's name", "tenant")
        return tenant

    def seen(self, whole: WorkflowSnapshot | None, ident: object, *, write: bool = False) -> WorkflowSnapshot:
        """Return a workflow, if it exists for this caller.

        Args:
            whole: The workflow, if there is one.
            ident: What was asked for.
            write: Whether it is to be changed.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        across = self.writes_across if write else self.reads_across
        if whole is None or not (across or (self.tenant and whole.workflow.tenant == self.tenant)):
            raise workflow_not_found(ident)
        return whole
