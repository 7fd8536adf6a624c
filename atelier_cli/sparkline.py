"""Curves as one line of text."""

import itertools
from collections.abc import Sequence
from typing import Final

_BLOCKS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return a curve of at most so many characters; each shows the mean of its share of the values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high <= low:
        return _BLOCKS[0] * count
    return "".join(_BLOCKS[min(int((one - low) / (high - low) * len(_BLOCKS)), len(_BLOCKS) - 1)] for one in means)
