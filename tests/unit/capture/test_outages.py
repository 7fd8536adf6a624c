"""What is told while a loop waits for something that is away."""

import pytest

from meshkit.errors import MeshError, invalid, unavailable
from services.monitoring.capture.outages import Outage


class Work:
    """Fails while it is told to."""

    failure: MeshError | None = None

    async def __call__(self) -> bool:
        if self.failure is not None:
            raise self.failure
        return True


async def test_an_outage_of_several_turns_lasts_until_the_work_is_done_again() -> None:
    outage, work = Outage("photos"), Work()
    assert await outage.bridge(work)
    work.failure = unavailable("The disk is full", reason="NO_ROOM_LEFT")
    told = [(await outage.bridge(work), outage.lasts) for _ in range(4)]
    assert told == [(False, False), (False, False), (False, True), (False, True)]
    work.failure = None
    assert (await outage.bridge(work), outage.lasts) == (True, False)


async def test_what_does_not_pass_by_itself_is_no_outage() -> None:
    outage, work = Outage("photos"), Work()
    work.failure = invalid("photo", "It is no picture")
    for _ in range(3):
        with pytest.raises(MeshError):
            await outage.bridge(work)
    assert not outage.lasts
