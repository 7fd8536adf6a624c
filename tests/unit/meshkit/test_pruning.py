"""A pass that deletes what is old, driven from two places at once."""

import asyncio
from collections.abc import Sequence
from typing import Any

from meshkit.retention import PruneBatch, PruneEstimate, Pruning, RetentionAges


class Shelf:
    """Holds old things of one tenant, and gives up one in a batch."""

    def __init__(self, things: int) -> None:
        self.things = things

    async def tenants(self) -> Sequence[str]:
        return ["t1"] if self.things else []

    async def prune(self, tenant: str, days: int, after: Any) -> PruneBatch:
        assert (tenant, days, after) == ("t1", 1, None if self.things == 3 else self.things)
        await asyncio.sleep(0)
        self.things -= 1
        return PruneBatch(1, self.things or None)

    async def estimate(self, tenant: str, days: int) -> PruneEstimate:
        raise AssertionError(tenant, days)


async def test_two_that_drive_one_pass_take_turns() -> None:
    shelf = Shelf(3)

    async def ages() -> RetentionAges:
        return RetentionAges(1, {})

    pruning = Pruning("shelf", shelf, ages, share=1.0)

    async def drive() -> None:
        while await pruning.run_once():
            pass

    await asyncio.gather(drive(), drive())
    assert shelf.things == 0
