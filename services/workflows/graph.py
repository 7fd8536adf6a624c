"""The graph that steps and their dependencies make: checks, order, ancestors. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

Graph = Mapping[
    str, Sequence[str]
]  # a step's name and the names of those it depends on, in the order of the definition


def find_cycle(graph: Graph) -> list[str]:
    """Return a cycle, as the names along it with the first one repeated at the end; empty where there is none.

    Args:
        graph: Names that it does not have are passed over.
    """
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        on_path: dict[str, int] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, index = stack.pop()
            if index == 0:
                if name in done:
                    continue
                on_path[name] = len(path)
                path.append(name)
            needed = graph[name]
            if index == len(needed):
                done.add(name)
                path.pop()
                del on_path[name]
                continue
            stack.append((name, index + 1))
            following = needed[index]
            if following in on_path:
                return [*path[on_path[following] :], following]
            if following in graph and following not in done:
                stack.append((following, 0))
    return []


def topological_order(graph: Graph) -> list[str]:
    """Names so that each comes after what it depends on; among the possible, the first in the definition comes first.

    Args:
        graph: Without a cycle and unknown names.
    """
    names = list(graph)
    place = {name: index for index, name in enumerate(names)}
    waits = {name: len(set(needed)) for name, needed in graph.items()}
    followers: dict[str, list[str]] = {name: [] for name in names}
    for name, needed in graph.items():
        for one in set(needed):
            followers[one].append(name)
    ready = [place[name] for name in names if not waits[name]]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for follower in followers[name]:
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, place[follower])
    return order


def ancestors(graph: Graph) -> dict[str, frozenset[str]]:
    """For each name all that it depends on, directly or not.

    Args:
        graph: Without a cycle and unknown names.
    """
    found: dict[str, frozenset[str]] = {}
    for name in topological_order(graph):
        found[name] = frozenset(graph[name]).union(*(found[needed] for needed in graph[name]))
    return found
