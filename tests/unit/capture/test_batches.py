"""Which photos make a batch."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.monitoring.capture.batches.domain import LATE, BatchLimits, GatheredBatch, gather

BEGAN = datetime(2026, 11, 27, 12, tzinfo=UTC)
LIMITS = BatchLimits(timedelta(seconds=90), timedelta(seconds=30))


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def photos(*seconds: float) -> list[tuple[UUID, datetime]]:
    return [(uuid4(), at(one)) for one in seconds]


def test_a_batch_takes_photos_until_it_is_idle_or_old() -> None:
    seen = photos(0, 10, 39, 68, 89.9, 90, 119.9, 150)
    found = gather(None, seen, at(160), LIMITS)
    assert [len(one.photos) for one in found] == [5, 2, 1]
    assert [one.closed_at for one in found] == [at(90), at(149.9), None]
    assert [one.last_activity_at for one in found] == [at(89.9), at(119.9), at(150)]


def test_a_batch_that_nothing_joins_closes_when_it_was_complete_not_when_somebody_looks() -> None:
    current = GatheredBatch(uuid4(), at(0), at(20), is_new=False)
    assert gather(current, [], at(50) + LATE - timedelta(microseconds=1), LIMITS) == [current]
    [closed] = gather(current, [], at(3600), LIMITS)
    assert (closed.id, closed.closed_at, closed.photos) == (current.id, at(50), ())


def test_a_batch_with_more_photos_to_come_is_not_complete() -> None:
    [found] = gather(None, photos(0, 1), at(3600), LIMITS, whole=False)
    assert found.closed_at is None


def reference(times: Sequence[float]) -> list[list[float]]:
    """Batches by the rule as it is told to people."""
    batches: list[list[float]] = []
    for one in times:
        if batches and one - batches[-1][0] < 90 and one - batches[-1][-1] < 30:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


@pytest.mark.parametrize("seed", range(20))
def test_when_photos_are_gathered_makes_no_difference(seed: int) -> None:
    rng = random.Random(seed)
    times = sorted(round(rng.uniform(0, 1000), 3) for _ in range(60))
    seen = photos(*times)
    batches: dict[UUID, list[UUID]] = {}
    current, place, now = None, 0, 0.0
    while place < len(seen) or current is not None:
        now += rng.expovariate(1 / 40)
        ready = [one for one in seen[place:] if one[1] <= at(now)]
        place += len(ready)
        found = gather(current, ready, at(now), LIMITS)
        for one in found:
            batches.setdefault(one.id, []).extend(one.photos)
        current = next(
            (GatheredBatch(o.id, o.started_at, o.last_activity_at, False) for o in found if not o.closed_at), None
        )
    when = {photo: (moment - BEGAN).total_seconds() for photo, moment in seen}
    found_times = [[when[photo] for photo in one] for one in batches.values()]
    assert found_times == reference(times)
