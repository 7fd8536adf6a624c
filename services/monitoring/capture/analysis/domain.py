"""What was found in a batch of photos, and what is said of it: pure values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias
from uuid import UUID

from services.monitoring.capture.alerts.domain import NewAlert

ExposureVerdict: TypeAlias = Literal["normal", "under", "over"]
SubjectKind: TypeAlias = Literal["person", "object", "none"]


class RiskLevel(StrEnum):
    """A risk score in a word, the least first."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """What was found in one photo; None is what was not judged, and is never guessed.

    Attributes:
        path: The photo below the camera root.
        taken_at: When it was seen.
        people: How many people are in it.
        confidence: How sure the surest of them is, 0 to 1.
        faces: How many faces.
        framing: How much of the nearest person is within the picture.
        view: From where that person is seen.
        colour: Colour of that person's garment, in a word.
        subject: What the picture is about.
        cut: Whether the edge cuts what should be whole: a person at the left or right, an object anywhere.
        blurred: Whether the picture is blurred.
        exposure: Whether it has too little or too much light.
        error: Why it was not judged; empty where it was.
    """

    path: str
    taken_at: datetime
    people: int | None = None
    confidence: float | None = None
    faces: int | None = None
    framing: str | None = None
    view: str | None = None
    colour: str | None = None
    subject: SubjectKind | None = None
    cut: bool | None = None
    blurred: bool | None = None
    exposure: ExposureVerdict | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What was found in the photos of one batch, of which there is at least one.

    Attributes:
        camera: The camera's name.
        photos: The photos, in the order in which they were seen.
    """

    camera: str
    photos: Sequence[PhotoFacts]

    @property
    def started_at(self) -> datetime:
        """When the first photo was seen."""
        return min(photo.taken_at for photo in self.photos)

    @property
    def ended_at(self) -> datetime:
        """When the last photo was seen."""
        return max(photo.taken_at for photo in self.photos)

    @property
    def people(self) -> list[int]:
        """How many people are in each photo that was judged."""
        return [photo.people for photo in self.photos if photo.people is not None]

    @property
    def most_faces(self) -> int:
        """The most faces in one photo."""
        return max((photo.faces or 0 for photo in self.photos), default=0)

    @property
    def framings(self) -> Counter[str]:
        """In how many photos each framing was found."""
        return Counter(photo.framing for photo in self.photos if photo.framing is not None)

    @property
    def views(self) -> Counter[str]:
        """In how many photos each view was found."""
        return Counter(photo.view for photo in self.photos if photo.view is not None)

    @property
    def colours(self) -> Counter[str]:
        """In how many photos each colour was found."""
        return Counter(photo.colour for photo in self.photos if photo.colour is not None)

    @property
    def objects(self) -> int:
        """How many photos are about an object."""
        return sum(photo.subject == "object" for photo in self.photos)

    @property
    def empty(self) -> int:
        """In how many photos nobody is."""
        return self.people.count(0)

    @property
    def blurred(self) -> int:
        """How many photos are blurred."""
        return sum(photo.blurred is True for photo in self.photos)

    @property
    def cut(self) -> int:
        """How many photos cut off what should be whole."""
        return sum(photo.cut is True for photo in self.photos)

    @property
    def failed(self) -> int:
        """How many photos were not judged."""
        return sum(bool(photo.error) for photo in self.photos)

    def exposed(self, verdict: ExposureVerdict) -> int:
        """Return how many photos have this verdict on their exposure."""
        return sum(photo.exposure == verdict for photo in self.photos)


@dataclass(frozen=True, slots=True)
class RuleCount:
    """What one rule found in a batch.

    Attributes:
        rule: Its name.
        words: What it means, as people say it.
        photos: In how many photos it holds.
        points: What that adds to the score.
    """

    rule: str
    words: str
    photos: int
    points: int


@dataclass(frozen=True, slots=True)
class Risk:
    """How grave a batch is.

    Attributes:
        score: 0 to 100.
        level: The same in a word.
        counts: The rules that hold, as their file has them.
    """

    score: int
    level: RiskLevel
    counts: Sequence[RuleCount] = ()


class TextBy(StrEnum):
    """Whose words a summary has."""

    FACTS = "facts"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event: a batch, judged.

    Attributes:
        id: Its number.
        batch_id: The batch.
        camera_id: Its camera.
        risk_score: How grave it is, 0 to 100.
        risk_level: The same in a word.
        summary: What the photos show.
        reasoning: Why it was judged so.
        started_at: When its first photo was seen.
        ended_at: When its last photo was seen.
        facts: What it was judged by.
        reviewed_by: Who has looked at it.
        reviewed_at: When.
        created_at: When it was made.
    """

    id: int
    batch_id: UUID
    camera_id: str
    risk_score: int
    risk_level: RiskLevel
    summary: str
    reasoning: str
    started_at: datetime
    ended_at: datetime
    facts: Mapping[str, Any]
    reviewed_by: str | None
    reviewed_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that is to be written, with its alerts.

    Attributes:
        batch_id: The batch.
        facts: What was found in it.
        risk: How grave that is.
        summary: What the photos show.
        reasoning: Why it was judged so.
        document: What is shown of the facts.
        text_task_id: Task by which a language model is asked for a summary; None where none is.
        alerts: What somebody is to be told of at once.
    """

    batch_id: UUID
    facts: BatchFacts
    risk: Risk
    summary: str
    reasoning: str
    document: Mapping[str, Any]
    text_task_id: UUID | None = None
    alerts: Sequence[NewAlert] = ()


@dataclass(frozen=True, slots=True)
class AskedText:
    """A summary that a language model was asked for.

    Attributes:
        event_id: The event.
        batch_id: Its batch.
        task_id: The task.
        age_seconds: For how long the event has been there.
    """

    event_id: int
    batch_id: UUID
    task_id: UUID
    age_seconds: float


@dataclass(frozen=True, slots=True)
class EventsWanted:
    """Which events are listed; None leaves a condition out."""

    camera_id: str | None = None
    level: RiskLevel | None = None
    score_least: int | None = None
    reviewed: bool | None = None
