import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE

from meshkit.errors import forbidden, unavailable
from meshkit.objects import ObjectStore
from meshkit.worker.handlers import TaskFailed
from meshkit.worker.pacing import Pauses
from services.training.trainer.keeping import Keeping, WholeFile, WholeThing
from services.training.trainer.service_calls import AttemptLost
from tests.unit.training.trainer.fakes import FakeStore, no_pause


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FakeStore()
        self.keeping = Keeping(cast("ObjectStore", self.store), "acme", Pauses(sleep=no_pause))
        self.told: list[str] = []
        self.lost = False

    def thing(self, *names: str, newest_only: bool = False, on_note: Callable[[], None] = lambda: None) -> WholeThing:
        for name in names:
            (self.folder / name).write_bytes(name.encode())

        async def note() -> None:
            on_note()
            if self.lost:
                raise AttemptLost
            self.told.append("+".join(names))

        return WholeThing([WholeFile(self.folder / name, f"t/{name}") for name in names], note, newest_only=newest_only)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_things_are_stored_in_their_order_told_of_and_taken_off_the_disk(rig: Rig) -> None:
    for names in (("a",), ("b", "c"), ("d",)):
        rig.keeping.add(rig.thing(*names))
    rig.keeping.close()
    await rig.keeping.run()
    assert rig.store.written == ["t/a", "t/b", "t/c", "t/d"]
    assert rig.told == ["a", "b+c", "d"]
    assert rig.left() == []
    await rig.keeping.discard(ended=True)
    assert sorted(rig.store.objects) == ["t/a", "t/b", "t/c", "t/d"], "what was told of is the training's"


async def test_a_state_that_waits_is_left_out_when_the_next_comes_and_the_rest_stays_before_it(rig: Rig) -> None:
    rig.keeping.add(rig.thing("state-1", newest_only=True))
    rig.keeping.add(rig.thing("save-2"))
    rig.keeping.add(rig.thing("state-3", newest_only=True))
    assert rig.left() == ["save-2", "state-3"]
    rig.keeping.close()
    await rig.keeping.run()
    assert rig.told == ["save-2", "state-3"]


async def test_a_store_that_is_away_is_asked_again(rig: Rig) -> None:
    rig.store.faults = [unavailable("away"), unavailable("away")]
    await rig.keeping.store(rig.thing("a"))
    assert rig.told == ["a"]


async def test_a_store_that_refuses_ends_the_attempt(rig: Rig) -> None:
    rig.store.faults = [forbidden("no")]
    with pytest.raises(TaskFailed) as failed:
        await rig.keeping.store(rig.thing("a"))
    assert (failed.value.category, failed.value.retryable) == (ERROR_CATEGORY_RESOURCE, True)


async def test_what_the_service_refuses_is_deleted_again(rig: Rig) -> None:
    rig.lost = True
    with pytest.raises(AttemptLost):
        await rig.keeping.store(rig.thing("a", "b"))
    await rig.keeping.discard(ended=False)
    assert rig.store.objects == {}


async def test_a_write_that_was_under_way_at_a_cancel_is_waited_for_and_deleted(rig: Rig) -> None:
    rig.store.gate.clear()
    storing = asyncio.create_task(rig.keeping.store(rig.thing("a")))
    await asyncio.sleep(0)
    storing.cancel()
    await asyncio.gather(storing, return_exceptions=True)
    discarding = asyncio.create_task(rig.keeping.discard(ended=True))
    await asyncio.sleep(0)
    rig.store.gate.set()
    await discarding
    assert rig.store.written == ["t/a"]
    assert rig.store.objects == {}


@pytest.mark.parametrize("ended", [True, False])
async def test_what_the_service_may_know_of_stays_unless_the_training_has_ended(rig: Rig, *, ended: bool) -> None:
    def broken() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await rig.keeping.store(rig.thing("a", on_note=broken))
    await rig.keeping.discard(ended=ended)
    assert bool(rig.store.objects) is not ended
