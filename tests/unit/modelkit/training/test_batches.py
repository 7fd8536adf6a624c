from collections import Counter

import pytest

from modelkit.training.batches import Batches

BUCKETS = [(64, 64)] * 5 + [(64, 48)] * 3 + [(48, 64)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_round_shows_every_picture_once_in_batches_of_one_size(size: int) -> None:
    batches = Batches(BUCKETS, range(9), size, seed=1)
    rounds = sum(-(-BUCKETS.count(bucket) // size) for bucket in set(BUCKETS))
    for _ in range(3):
        taken = [batches.take() for _ in range(rounds)]
        assert all(len({BUCKETS[number] for number in batch}) == 1 and len(batch) <= size for batch in taken)
        assert Counter(number for batch in taken for number in batch) == Counter(range(9))


def test_the_order_depends_on_seed_and_position_alone() -> None:
    whole = Batches(BUCKETS, range(9), 2, seed=3)
    row = [whole.take() for _ in range(40)]
    resumed = Batches(BUCKETS, range(9), 2, seed=3)
    resumed.position = 17
    assert [resumed.take() for _ in range(23)] == row[17:]
    other = Batches(BUCKETS, range(9), 2, seed=4)
    assert [other.take() for _ in range(40)] != row


def test_pictures_that_are_held_out_do_not_come() -> None:
    batches = Batches(BUCKETS, [0, 2, 6], 1, seed=1)
    assert {number for _ in range(12) for number in batches.take()} == {0, 2, 6}
