"""What is kept for a time, and for how long."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from meshkit.retention import EVERYONE, RetentionAges


class RetentionKind(enum.StrEnum):
    """What is kept for a time; workflows and trainings by their own services, which ask for the ages."""

    TASKS = "TASKS"
    WORKFLOWS = "WORKFLOWS"
    TRAININGS = "TRAININGS"
    DELIVERIES = "DELIVERIES"
    USAGE = "USAGE"


class RetentionRule(NamedTuple):
    """How long something of a tenant, or of all, is kept.

    Attributes:
        kind: What.
        tenant: Whose; `EVERYONE` for all that have no rule of their own.
        days: Days after its end; 0 for ever.
        set_at: When it was set; None for what the settings say.
    """

    kind: RetentionKind
    tenant: str
    days: int
    set_at: datetime | None = None


def holding(rules: Sequence[RetentionRule], defaults: Mapping[RetentionKind, int]) -> list[RetentionRule]:
    """Return what holds: of each kind first the rule for all, then those of tenants by their names.

    Args:
        rules: Those that were set.
        defaults: What the settings say of all tenants.
    """
    found = {(kind, EVERYONE): RetentionRule(kind, EVERYONE, defaults[kind]) for kind in RetentionKind}
    found |= {(rule.kind, rule.tenant): rule for rule in rules}
    order = list(RetentionKind)
    return sorted(found.values(), key=lambda rule: (order.index(rule.kind), rule.tenant != EVERYONE, rule.tenant))


def ages_of(rules: Sequence[RetentionRule], kind: RetentionKind) -> RetentionAges:
    """Return the ages of a kind out of the rules that hold."""
    days = {rule.tenant: rule.days for rule in rules if rule.kind is kind}
    return RetentionAges(days.pop(EVERYONE), days)
