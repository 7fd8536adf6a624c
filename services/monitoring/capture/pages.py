"""Lists that are read page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from atelier.monitoring.v1 import pages_pb2

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class PageWanted:
    """A page.

    Attributes:
        limit: Most items on it.
        offset: How many come before.
    """

    limit: int
    offset: int


@dataclass(frozen=True, slots=True)
class PageFound(Generic[ItemT]):
    """What is on a page.

    Attributes:
        items: The items.
        total: How many there are in all.
    """

    items: Sequence[ItemT]
    total: int


def write_page(target: pages_pb2.PageInfo, wanted: PageWanted, found: PageFound[ItemT]) -> None:
    """Write where a page stands among all."""
    target.total, target.limit, target.offset = found.total, wanted.limit, wanted.offset
    target.items_count = len(found.items)
    target.has_more = wanted.offset + len(found.items) < found.total
