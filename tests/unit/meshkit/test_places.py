import asyncio
from contextlib import AsyncExitStack

from meshkit.places import TenantPlaces


class Fetches:
    """Attempts that hold a place until they are told to leave it."""

    def __init__(self, places: TenantPlaces) -> None:
        self.places = places
        self.inside: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str) -> None:
        """Begins one for each name, whose first letter is its tenant."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._hold(name))
            await settle()

    async def _hold(self, name: str) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.places.place(name[0]))
            self.inside.append(name)
            stack.callback(self.inside.remove, name)
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_has_its_share_and_others_have_theirs() -> None:
    fetches = Fetches(TenantPlaces(4, 2))
    await fetches.begin("a1", "a2", "a3", "b1")
    assert fetches.inside == ["a1", "a2", "b1"]
    await fetches.end("b1")
    assert fetches.inside == ["a1", "a2"]
    await fetches.end("a1")
    assert fetches.inside == ["a2", "a3"]


async def test_tenants_that_wait_take_turns() -> None:
    fetches = Fetches(TenantPlaces(1, 1))
    await fetches.begin("a1", "b1", "b2", "c1")
    order = []
    for _ in range(4):
        [name] = fetches.inside
        order.append(name)
        await fetches.end(name)
    assert order == ["a1", "b1", "c1", "b2"]


async def test_one_that_is_cancelled_while_it_waits_or_as_it_gets_its_place_leaves_none_behind() -> None:
    fetches = Fetches(TenantPlaces(1, 1))
    await fetches.begin("a1", "a2", "a3")
    fetches.tasks["a2"].cancel()
    fetches._ends["a1"].set()
    await fetches.tasks["a1"]
    fetches.tasks["a3"].cancel()
    await settle()
    await fetches.begin("a4")
    assert fetches.inside == ["a4"]
