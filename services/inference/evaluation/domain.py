"""What is wanted of a picture, and what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

Framing: TypeAlias = Literal[
    "full_body", "three_quarter_upper", "upper_body", "three_quarter_lower", "lower_body", "close_up"
]
ViewAngle: TypeAlias = Literal["front", "back", "side"]
Gender: TypeAlias = Literal["FEMALE", "MALE", "UNKNOWN"]
AnatomyIssue: TypeAlias = Literal[
    "extra_limb", "missing_limb", "malformed_hand", "malformed_face", "distorted_proportions", "other"
]


@dataclass(frozen=True, slots=True)
class WantedShot:
    """What the caller expects, and what is to be told beside.

    Attributes:
        framing: How much of a person is to be seen.
        view: From where.
        gender: What the person is to look like.
        instructions: The caller's own, for models.
        descriptions: Whether garments, subject and scene are to be described.
    """

    framing: Framing
    view: ViewAngle
    gender: Gender = "FEMALE"
    instructions: str = ""
    descriptions: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What an evaluator found; what it could not judge is None."""

    framing: Framing | None = None
    view: ViewAngle | None = None
    shot_confidence: float | None = None
    people: int | None = None
    presence_confidence: float | None = None
    anatomy_correct: bool | None = None
    anatomy_issues: Sequence[AnatomyIssue] = ()
    anatomy_confidence: float | None = None
    gender: Gender | None = None
    gender_confidence: float | None = None
    garments: str | None = None
    subject: str | None = None
    scene: str | None = None
    collage: bool | None = None

    def matches(self, wanted: WantedShot) -> bool | None:
        """Tell whether the shot is the wanted one; None where what was found neither says so nor rules it out."""
        pairs = ((self.framing, wanted.framing), (self.view, wanted.view))
        if any(found is not None and found != asked for found, asked in pairs):
            return False
        return None if any(found is None for found, _ in pairs) else True

    @property
    def confidence(self) -> float | None:
        """Mean of the confidences that there are."""
        all_of_them = (
            self.shot_confidence,
            self.presence_confidence,
            self.anatomy_confidence,
            self.gender_confidence,
        )
        known = [one for one in all_of_them if one is not None]
        return fmean(known) if known else None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The outcome of an evaluation.

    Attributes:
        findings: What was found; None where the evaluator failed.
        error: Why it failed: a sentence; empty where it did not.
        seconds: How long it took.
    """

    findings: Findings | None
    error: str
    seconds: float


class EvaluatorFailedError(Exception):
    """An evaluator did not judge a picture.

    Args:
        message: A sentence for the caller.
        counts: Whether it tells of the evaluator's health: a picture that is refused does not.
        fatal: Whether the next evaluation would fail alike, so that none is tried for a while.
    """

    def __init__(self, message: str, *, counts: bool = True, fatal: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.counts = counts
        self.fatal = fatal


class Evaluator(Protocol):
    """Judges pictures: networks of this process, or a provider's model."""

    async def judge(self, picture: Image.Image, wanted: WantedShot) -> Findings:
        """Judge an opaque RGB picture.

        Raises:
            EvaluatorFailedError: It did not.
        """
        ...
