"""A batch, and which photos belong to it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4


class BatchState(enum.StrEnum):
    """State of a batch."""

    OPEN = "open"
    CLOSED = "closed"
    ANALYSED = "analysed"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch.

    Attributes:
        id: Its identifier.
        camera_id: Its camera.
        state: Its state.
        started_at: When its first photo was seen.
        last_activity_at: When its last photo was seen.
        closed_at: When it was complete.
        photo_count: Photos in it.
        detection_count: What was found on them so far.
    """

    id: UUID
    camera_id: str
    state: BatchState
    started_at: datetime
    last_activity_at: datetime
    closed_at: datetime | None
    photo_count: int
    detection_count: int = 0


@dataclass(frozen=True, slots=True)
class BatchesWanted:
    """Which batches are listed; None leaves a condition out."""

    camera_id: str | None = None
    state: BatchState | None = None


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How long a batch takes further photos.

    Attributes:
        window: After its first one.
        idle: After its last one.
    """

    window: timedelta
    idle: timedelta

    def ends(self, started_at: datetime, last_activity_at: datetime) -> datetime:
        """Return until when a batch takes further photos, as far as is known now."""
        return min(started_at + self.window, last_activity_at + self.idle)


@dataclass(frozen=True, slots=True)
class GatheredBatch:
    """A batch with what gathering adds to it.

    Attributes:
        id: Its identifier.
        started_at: When its first photo was seen.
        last_activity_at: When its last photo was seen.
        is_new: Whether it has no row yet.
        photos: Photos that join it.
        closed_at: When it was complete; None while it takes further ones.
    """

    id: UUID
    started_at: datetime
    last_activity_at: datetime
    is_new: bool
    photos: tuple[UUID, ...] = field(default=())
    closed_at: datetime | None = None


# A photo whose row is about to be committed bears a time from before that.
LATE = timedelta(seconds=1)


def gather(
    current: GatheredBatch | None,
    seen: Sequence[tuple[UUID, datetime]],
    now: datetime,
    limits: BatchLimits,
    *,
    whole: bool = True,
) -> list[GatheredBatch]:
    """Return the batches of a camera that its new photos join or make.

    When it is done makes no difference: what counts is when photos were seen.

    Args:
        current: The batch that takes further photos, if there is one.
        seen: Photos that belong to no batch yet, and when each was seen; in that order.
        now: The present.
        limits: How long a batch takes further photos.
        whole: Whether these are all of them: only then may the last batch be complete.
    """
    found: list[GatheredBatch] = []
    for photo_id, at in seen:
        if current is not None and at >= (end := limits.ends(current.started_at, current.last_activity_at)):
            found.append(replace(current, closed_at=end))
            current = None
        if current is None:
            current = GatheredBatch(uuid4(), at, at, is_new=True)
        current = replace(
            current, photos=(*current.photos, photo_id), last_activity_at=max(current.last_activity_at, at)
        )
    if current is not None:
        end = limits.ends(current.started_at, current.last_activity_at)
        found.append(replace(current, closed_at=end if whole and now - LATE >= end else None))
    return found
