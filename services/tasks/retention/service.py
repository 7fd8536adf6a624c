"""Use cases of retention: tell, set and remove ages, and tell what would be deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from meshkit.auth import valid_tenant
from meshkit.errors import invalid
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from meshkit.retention import EVERYONE, PreviewLine, PrunedKind, Pruning, RetentionAges
from services.tasks.retention.domain import RetentionKind, RetentionRule, ages_of, holding
from services.tasks.retention.kinds import OldDeliveries, OldIdentifiers, OldTaskRows, OldUsage
from services.tasks.retention.store import RetentionStore

_log = get_logger(__name__)


class Retention:
    """How long what has ended is kept.

    Args:
        store: The database.
        objects: Tells how large files are.
        defaults: Days of each kind where no rule was set; 0 for ever.
        identifier_days: Days for which the identifier of a deleted task is given to no other.
        share: Share of the time in which old rows of a kind are deleted.
    """

    def __init__(
        self,
        store: RetentionStore,
        objects: ObjectStore,
        defaults: Mapping[RetentionKind, int],
        *,
        identifier_days: int,
        share: float,
    ) -> None:
        self._store = store
        self._defaults = defaults
        kinds: Mapping[RetentionKind, PrunedKind] = {
            RetentionKind.TASKS: OldTaskRows(store, objects),
            RetentionKind.DELIVERIES: OldDeliveries(store),
            RetentionKind.USAGE: OldUsage(store),
        }
        self.prunings = {kind: self._pruning(kind, one, share) for kind, one in kinds.items()}
        self.identifiers = Pruning(
            "identifiers", OldIdentifiers(store), _constant(RetentionAges(identifier_days)), share=share
        )

    async def rules(self, kind: RetentionKind | None = None) -> list[RetentionRule]:
        """Return what holds, of one kind or of all."""
        rules = holding(await self._store.rules(), self._defaults)
        return [rule for rule in rules if kind in (None, rule.kind)]

    async def ages(self, kind: RetentionKind) -> RetentionAges:
        """Return the ages of a kind."""
        return ages_of(await self.rules(kind), kind)

    async def set_rule(self, kind: RetentionKind, tenant: str, days: int) -> RetentionRule:
        """Set an age; return what holds now.

        Raises:
            MeshError: `INVALID` for what is no tenant's name.
        """
        _check(tenant)
        await self._store.set_rule(kind, tenant, days)
        _log.info("retention_set", kind=kind, of=tenant, days=days)
        return await self._held(kind, tenant)

    async def remove_rule(self, kind: RetentionKind, tenant: str) -> RetentionRule:
        """Remove an age that was set, if it was; return what holds now.

        Raises:
            MeshError: `INVALID` for what is no tenant's name.
        """
        _check(tenant)
        await self._store.remove_rule(kind, tenant)
        _log.info("retention_removed", kind=kind, of=tenant)
        return await self._held(kind, tenant)

    async def preview(self, kind: RetentionKind, tenant: str | None, days: int | None) -> list[PreviewLine]:
        """Tell what of this service would be deleted now; see `Pruning.preview`."""
        return await self.prunings[kind].preview(tenant, days)

    async def _held(self, kind: RetentionKind, tenant: str) -> RetentionRule:
        rules = {rule.tenant: rule for rule in await self.rules(kind)}
        return rules.get(tenant) or rules[EVERYONE]

    def _pruning(self, kind: RetentionKind, pruned: PrunedKind, share: float) -> Pruning:
        async def ages() -> RetentionAges:
            return await self.ages(kind)

        return Pruning(kind.lower(), pruned, ages, share=share)


def _constant(ages: RetentionAges) -> Callable[[], Awaitable[RetentionAges]]:
    async def told() -> RetentionAges:
        return ages

    return told


def _check(tenant: str) -> None:
    if tenant != EVERYONE and not valid_tenant(tenant):
        raise invalid("tenant", "is neither a tenant's name nor *", "tenant")
