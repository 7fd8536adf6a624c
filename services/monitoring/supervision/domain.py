"""Background loops over all processes that have them. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from meshkit.loops import LoopEventKind, LoopState

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
NOBODY = "no process answers"
"""Error of a loop all of whose processes are away: it comes back with one of them."""

# The worst first: what one process does not do counts, whatever the others do.
_WORST = (LoopState.FAILED, LoopState.CRASHED, LoopState.RESTARTING, LoopState.STOPPED, LoopState.RUNNING)


class LoopOrder(enum.StrEnum):
    """What operators can have done to a loop."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class LoopOnReplica:
    """A loop of one process, as the process reported it.

    Attributes:
        revision: Newest wish that it has followed.
    """

    name: str
    state: LoopState
    restart_count: int
    started_at: datetime | None
    crashed_at: datetime | None
    error: str | None
    revision: int


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A line of a loop's history; `event_id` tells it from all others."""

    event_id: UUID
    loop: str
    at: datetime
    attempt: int
    kind: LoopEventKind
    error: str | None
    replica: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What operators want of a loop.

    Attributes:
        stopped: Whether it is not to run.
        order: What was asked last; None where nothing ever was.
        revision: Grows with each order.
    """

    loop: str
    stopped: bool = False
    order: LoopOrder | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class LoopOverview:
    """A loop over all processes that have it."""

    name: str
    state: LoopState
    restart_count: int = 0
    started_at: datetime | None = None
    crashed_at: datetime | None = None
    error: str | None = None


def is_name(name: str) -> bool:
    """Whether a loop can be called so."""
    return _NAME.fullmatch(name) is not None


def overview(known: Sequence[str], reported: Sequence[LoopOnReplica]) -> list[LoopOverview]:
    """Put together what processes report.

    Args:
        known: Names of loops that there were, also where nobody reports them now.
        reported: Loops of all processes that answer.

    Returns:
        Every loop, by name.
    """
    by_name: dict[str, list[LoopOnReplica]] = {name: [] for name in known}
    for one in reported:
        by_name.setdefault(one.name, []).append(one)
    return [_together(name, by_name[name]) for name in sorted(by_name)]


def _together(name: str, loops: Sequence[LoopOnReplica]) -> LoopOverview:
    if not loops:
        return LoopOverview(name, LoopState.CRASHED, error=NOBODY)
    crashed = [one for one in loops if one.crashed_at is not None]
    newest = max(crashed, key=_crashed_at, default=None)
    return LoopOverview(
        name,
        min((one.state for one in loops), key=_WORST.index),
        max(one.restart_count for one in loops),
        max((one.started_at for one in loops if one.started_at is not None), default=None),
        None if newest is None else newest.crashed_at,
        None if newest is None else newest.error,
    )


def _crashed_at(loop: LoopOnReplica) -> datetime:
    assert loop.crashed_at is not None, "asked of loops that crashed"
    return loop.crashed_at


def followed(wish: Wish, replicas: Mapping[str, Sequence[LoopOnReplica]]) -> bool:
    """Whether every process that has a loop has followed a wish."""
    having = [one for loops in replicas.values() for one in loops if one.name == wish.loop]
    return bool(having) and all(one.revision >= wish.revision for one in having)
