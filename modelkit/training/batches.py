"""The order in which pictures are trained: every picture once a round, in batches of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Batches:
    """An endless row of batches that depends on nothing but the seed and the position in it.

    Args:
        buckets: The bucket of each picture.
        pictures: Numbers of the pictures to train on.
        size: Pictures of a batch; the last batch of a bucket in a round may have fewer.
        seed: Of the order.
    """

    def __init__(self, buckets: Sequence[tuple[int, int]], pictures: Sequence[int], size: int, seed: int) -> None:
        self._rooms: dict[tuple[int, int], list[int]] = {}
        for picture in pictures:
            self._rooms.setdefault(buckets[picture], []).append(picture)
        self._size = size
        self._seed = seed
        self._round = -1
        self._order: list[list[int]] = []
        self.position = 0

    def take(self) -> list[int]:
        """Return the numbers of the next batch's pictures."""
        length = sum(-(-len(room) // self._size) for room in self._rooms.values())
        number, at = divmod(self.position, length)
        if number != self._round:
            self._round, self._order = number, self._drawn(number)
        self.position += 1
        return self._order[at]

    def _drawn(self, number: int) -> list[list[int]]:
        random = np.random.default_rng([self._seed, number])
        batches: list[list[int]] = []
        for _, room in sorted(self._rooms.items()):
            order = [room[place] for place in random.permutation(len(room))]
            batches.extend(order[at : at + self._size] for at in range(0, len(order), self._size))
        return [batches[place] for place in random.permutation(len(batches))]
