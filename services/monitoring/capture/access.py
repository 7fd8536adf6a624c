"""Who may see what capture knows: callers of its tenant, and those who may see every tenant's."""

from __future__ import annotations

from meshkit.access import Caller


class CaptureAccess:
    """Judges callers.

    Args:
        tenant: Tenant that everything belongs to.
    """

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def reads(self) -> bool:
        """Whether the current caller may see it; nothing exists for others."""
        caller = Caller.of_call()
        return caller.reads_across or caller.tenant == self.tenant

    def writes(self) -> bool:
        """Whether the current caller may change it."""
        caller = Caller.of_call()
        return caller.writes_across or caller.tenant == self.tenant
