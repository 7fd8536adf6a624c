"""An alert, and what may become of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class AlertState(StrEnum):
    """What has become of an alert."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    DISMISSED = "dismissed"


class AlertGrade(StrEnum):
    """How grave an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class NewAlert:
    """An alert that is to be raised.

    Attributes:
        rule: Rule that asks for it.
        grade: How grave it is.
        message: What to say.
        pause_seconds: None is raised where the rule has raised one for the camera within so long.
        webhook_url: Who is told; empty where nobody is.
    """

    rule: str
    grade: AlertGrade
    message: str
    pause_seconds: int
    webhook_url: str


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert.

    Attributes:
        id: Its identifier.
        event_id: Event that it tells of.
        camera_id: Camera of the event.
        rule: Rule that asked for it.
        grade: How grave it is.
        message: What to say.
        state: What has become of it.
        created_at: When it was raised.
        acknowledged_by: Who takes care of it.
        acknowledged_at: Since when.
        dismissed_by: Who has dismissed it.
        dismissed_at: When.
    """

    id: UUID
    event_id: int
    camera_id: str
    rule: str
    grade: AlertGrade
    message: str
    state: AlertState
    created_at: datetime
    acknowledged_by: str | None = None
    acknowledged_at: datetime | None = None
    dismissed_by: str | None = None
    dismissed_at: datetime | None = None

    @property
    def version(self) -> int:
        """Its place in the order of what is told of it."""
        return 1 + (self.acknowledged_at is not None) + (self.dismissed_at is not None)


@dataclass(frozen=True, slots=True)
class AlertsWanted:
    """Which alerts are listed; None leaves a condition out."""

    camera_id: str | None = None
    state: AlertState | None = None
    grade: AlertGrade | None = None
    event_id: int | None = None


class AlertHandover(NamedTuple):
    """What is told of an alert, on its way to a webhook.

    Attributes:
        event_id: Identifies what is told.
        alert_id: The alert.
        version: Its place in the order of what is told of the alert.
        url: Who is told.
        event: The serialized `AlertStatusEvent`.
    """

    event_id: UUID
    alert_id: UUID
    version: int
    url: str
    event: bytes
