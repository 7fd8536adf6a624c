"""A photo, and what was found on it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


class PhotoState(enum.StrEnum):
    """What has become of a photo."""

    WAITING = "WAITING"
    DETECTING = "DETECTING"
    DETECTED = "DETECTED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """A photo.

    Attributes:
        id: Its identifier.
        camera_id: Its camera.
        file: Its file below the root, as the file system names it.
        path: The same for people.
        size: Bytes of the file.
        modified_ns: When the file was changed last, in nanoseconds since 1970.
        sha256: Of the content; empty where it was not read.
        state: What has become of it.
        task_id: Task that looks at it.
        error: Why it could not be looked at.
        seen_at: When it was seen.
        detected_at: When it was looked at.
        batch_id: Batch that it belongs to.
        findings: What was found on it as a whole.
    """

    id: UUID
    camera_id: str
    file: bytes
    path: str
    size: int
    modified_ns: int
    sha256: str
    state: PhotoState
    task_id: UUID | None
    error: str | None
    seen_at: datetime
    detected_at: datetime | None
    batch_id: UUID | None
    findings: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class DetectionRecord:
    """Something that was found on a photo.

    Attributes:
        id: Its number.
        photo_id: The photo.
        camera_id: Its camera.
        object_type: What it is.
        label: The same in words.
        confidence: How sure that is, 0 to 1.
        bbox: Left, upper edge, width and height in pixels; None for what concerns the whole photo.
        detected_at: When it was found.
    """

    id: int
    photo_id: UUID
    camera_id: str
    object_type: str
    label: str
    confidence: float
    bbox: tuple[float, float, float, float] | None
    detected_at: datetime


@dataclass(frozen=True, slots=True)
class PhotosWanted:
    """Which photos are listed; None leaves a condition out."""

    camera_id: str | None = None
    state: PhotoState | None = None
    batch_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A whole file as the watcher has read it.

    Attributes:
        camera_id: Its camera.
        file: Its place below the root, as the file system names it.
        size: Its bytes.
        modified_ns: When it was changed last.
        sha256: Of its content; empty where it was not read.
        error: Why nobody can look at it; None where somebody can.
    """

    camera_id: str
    file: bytes
    size: int
    modified_ns: int
    sha256: str
    error: str | None = None


def shown(file: bytes) -> str:
    """Return the name of a file for people: bytes that are no UTF-8, and what a terminal obeys, are escaped."""
    text = file.decode("utf-8", "backslashreplace")
    return "".join(
        one if one.isprintable() else one.encode().decode("latin-1").encode("unicode_escape").decode() for one in text
    )
