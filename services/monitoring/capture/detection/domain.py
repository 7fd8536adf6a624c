"""From a task that has ended to what is known of its photo. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.tasks.v1 import enums_pb2, task_pb2
from google.protobuf.json_format import MessageToDict

_ENDED = frozenset({enums_pb2.TASK_STATUS_COMPLETED, enums_pb2.TASK_STATUS_FAILED, enums_pb2.TASK_STATUS_CANCELLED})
_MOST_ERROR_CHARS = 2000

FILE_GONE = "The file was gone before it could be looked at."
FILE_REPLACED = "The file had another content before it could be looked at."
FILE_TOO_LARGE = "The file is too large to be looked at."
CANCELLED = "The task that was to look at it was cancelled."
NO_REASON = "The task that was to look at it failed."
NO_FINDINGS = "The task that was to look at it told nothing."


@dataclass(frozen=True, slots=True)
class DetectionFound:
    """A person or a face that was found on a photo.

    Attributes:
        object_type: What it is.
        label: The same in words.
        confidence: How sure that is, 0 to 1.
        bbox: Left, upper edge, width and height in pixels.
    """

    object_type: str
    label: str
    confidence: float
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class DetectionOutcome:
    """What became of a photo.

    Attributes:
        findings: What was found on it as a whole, as JSON; None where nobody could look.
        detections: What was found on it one by one.
        error: Why nobody could look at it; None where somebody did.
        stored_path: Where the photo lies in storage; empty where it does not.
        missed: Whether its content was out of reach: should it come again, it is a new photo.
    """

    findings: Mapping[str, Any] | None = None
    detections: Sequence[DetectionFound] = ()
    error: str | None = None
    stored_path: str = ""
    missed: bool = False


def missed(sentence: str) -> DetectionOutcome:
    """Return that nobody could look at a photo because its content was out of reach."""
    return DetectionOutcome(error=sentence[:_MOST_ERROR_CHARS], missed=True)


def failed(sentence: str) -> DetectionOutcome:
    """Return that nobody could look at a photo."""
    return DetectionOutcome(error=sentence[:_MOST_ERROR_CHARS])


def outcome_of(task: task_pb2.Task) -> DetectionOutcome | None:
    """Return what a task has found; None where it has not ended."""
    if task.status not in _ENDED:
        return None
    if task.status == enums_pb2.TASK_STATUS_CANCELLED:
        return failed(CANCELLED)
    if task.status == enums_pb2.TASK_STATUS_FAILED:
        return failed(task.errors[-1] if task.errors else NO_REASON)
    if not task.photo_detection.HasField("findings"):
        return failed(NO_FINDINGS)
    found = task.photo_detection.findings
    return DetectionOutcome(
        findings=MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True),
        detections=[
            DetectionFound(
                one.object_type,
                one.object_type.replace("_", " "),
                one.confidence,
                (one.bbox.left, one.bbox.top, one.bbox.width, one.bbox.height),
            )
            for one in found.detections
        ],
        stored_path=task.photo_detection.input_image_path,
    )
