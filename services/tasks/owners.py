"""Whose jobs are that workers hold."""

from __future__ import annotations

from dataclasses import dataclass

from services.tasks.domain import JobKind


@dataclass(frozen=True, slots=True)
class JobOwner:
    """Whose a job is.

    Attributes:
        tenant: Its tenant.
        kind: Whether it is a task, or a job of another service.
    """

    tenant: str
    kind: JobKind
