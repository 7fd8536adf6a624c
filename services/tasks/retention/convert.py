"""Between domain values and the messages of retention."""

from __future__ import annotations

from atelier.tasks.v1 import retention_pb2 as pb

from meshkit.moments import assign
from services.tasks.retention.domain import RetentionKind, RetentionRule

KIND = {kind: pb.RetentionKind.Value(f"RETENTION_KIND_{kind}") for kind in RetentionKind}
KIND_OF = {number: kind for kind, number in KIND.items()}


def to_age(rule: RetentionRule) -> pb.RetentionAge:
    """Return a rule."""
    message = pb.RetentionAge(kind=KIND[rule.kind], tenant=rule.tenant, days=rule.days)
    if rule.set_at is not None:
        assign(message.set_at, rule.set_at)
    return message
