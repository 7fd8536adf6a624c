"""A camera, and how its state follows from what is known. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class CameraStatus(enum.StrEnum):
    """State of a camera."""

    ONLINE = "online"
    OFFLINE = "offline"
    ERROR = "error"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CameraRecord:
    """A camera.

    Attributes:
        id: Name of its folder.
        enabled: Whether its photos are taken.
        status: Its state.
        previous_status: Its state before that.
        message: Why it is so.
        last_file_at: When its newest photo was seen.
        created_at: When the folder was found first.
    """

    id: str
    enabled: bool
    status: CameraStatus
    previous_status: CameraStatus
    message: str | None
    last_file_at: datetime | None
    created_at: datetime


def judge(
    trouble: str | None, last_file_at: datetime | None, now: datetime, offline_seconds: float, note: str | None = None
) -> tuple[CameraStatus, str | None]:
    """Return the state of a camera, and why it is so.

    Args:
        trouble: What keeps its folder from being read; None where nothing does.
        last_file_at: When its newest photo was seen.
        now: The present.
        offline_seconds: How long no photo must have come for it to be offline.
        note: What else there is to say.
    """
    if trouble is not None:
        return CameraStatus.ERROR, trouble
    if last_file_at is None:
        return CameraStatus.UNKNOWN, note
    if (now - last_file_at).total_seconds() > offline_seconds:
        return CameraStatus.OFFLINE, "; ".join(one for one in (f"No photo for {offline_seconds:g} s", note) if one)
    return CameraStatus.ONLINE, note
