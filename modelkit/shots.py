"""What a photo shows of people: how many, how much of the nearest one, and from where.

The networks of `modelkit.vision` find faces and bodies; all that follows from them is geometry. Where the picture's
edges cut a body is measured in parts of it: 0 at the shoulders, 1 at the hips, 2 at the knees, 3 at the ankles. What
cannot be told stays None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from modelkit.seams import is_collage
from modelkit.vision import BodyPose, Face

FramingName = Literal["full_body", "three_quarter_upper", "upper_body", "three_quarter_lower", "lower_body", "close_up"]
ViewName = Literal["front", "back", "side"]

# The least score of real faces in the windows of large pictures (`modelkit.vision`).
_LEAST_FACE = 0.75
_LEAST_SEEN = 0.5
_NOSE, _EARS, _SHOULDERS, _HIPS, _KNEES, _ANKLES = 0, (7, 8), (11, 12), (23, 24), (25, 26), (27, 28)
_JOINTS = (_SHOULDERS, _HIPS, _KNEES, _ANKLES)
# Where on the body the lower edge of the picture lies, at the most, for each framing.
_UPPER = 1.35
_LOWER_EDGES: tuple[tuple[FramingName, float], ...] = (
    ("close_up", 0.3),
    ("upper_body", _UPPER),
    ("three_quarter_upper", 2.8),
)
# Where the upper edge lies, at the least, for what begins below the waist.
_WAIST = 0.7
# How far a body is turned, in degrees from the camera: up to the first it is seen from the front, from the second on
# from behind.
_SIDE_FROM, _SIDE_TO = 52.5, 112.5
# Width of the square around a face in which its body is looked for again, in heights of the face, and where it begins.
_AROUND_FACE, _ABOVE_FACE = 8.0, 1.5
# Two poses whose noses are nearer than this, in lengths of the trunk, are one person.
_SAME_NOSE = 0.3


class PeopleFinder(Protocol):
    """Finds people (`modelkit.vision.Vision`)."""

    def faces(self, image: Image.Image) -> Sequence[Face]:
        """Find all faces, the largest first."""
        ...

    def poses(self, image: Image.Image) -> Sequence[BodyPose]:
        """Find the pose of everybody."""
        ...

    def likelihood(self, image: Image.Image) -> float:
        """Return how likely it is that somebody is there."""
        ...


@dataclass(frozen=True, slots=True)
class Shot:
    """What a photo shows.

    Attributes:
        people: How many people; 0 where nobody was found.
        presence: How sure that is: that somebody is there, or that nobody is.
        framing: How much of the nearest person is within the picture; None where it cannot be told.
        view: From where that person is seen; None where it cannot be told.
        confidence: How sure framing and view are, of those that were told; None where neither was.
        collage: Whether the picture was put together of several.
    """

    people: int
    presence: float
    framing: FramingName | None
    view: ViewName | None
    confidence: float | None
    collage: bool


@dataclass(frozen=True, slots=True)
class PeopleSeen:
    """The people of a photo.

    Attributes:
        faces: Faces that are real, the largest first.
        poses: Poses, one a person, the most clearly seen first.
        alone: The faces among them that belong to no pose.
        nearest: Pose of the person who is the nearest; None where there is none.
    """

    faces: Sequence[Face]
    poses: Sequence[BodyPose]
    alone: Sequence[Face]
    nearest: BodyPose | None

    @property
    def count(self) -> int:
        """How many people there are."""
        return len(self.poses) + len(self.alone)


def look(image: Image.Image, finder: PeopleFinder) -> PeopleSeen:
    """Find the people of an RGB picture.

    Args:
        image: The picture, upright and opaque.
        finder: Finds people in it.
    """
    faces = [face for face in finder.faces(image) if face.score >= _LEAST_FACE]
    poses = _distinct(finder.poses(image))
    alone = [face for face in faces if not any(is_face_of(face, pose) for pose in poses)]
    nearest = _nearest(image, finder, poses, alone) if poses or alone else None
    return PeopleSeen(faces, poses, alone, nearest)


def judge(image: Image.Image, finder: PeopleFinder, seen: PeopleSeen | None = None) -> Shot:
    """Judge an RGB picture.

    Args:
        image: The picture, upright and opaque.
        finder: Finds people in it.
        seen: Its people, where they are known already.
    """
    seen = look(image, finder) if seen is None else seen
    collage = is_collage(image)
    if not seen.count:
        return Shot(0, 1.0 - min(1.0, finder.likelihood(image)), None, None, None, collage)
    presence = max([*(face.score for face in seen.faces), *(pose.score for pose in seen.poses)])
    nearest = seen.nearest
    if nearest is None:
        return Shot(seen.count, presence, None, None, None, collage)
    framed = framing_of(nearest, image.size)
    has_face = any(is_face_of(face, nearest) for face in seen.faces)
    viewed = view_of(nearest, image.size, has_face=has_face)
    told = [sure for found in (framed, viewed) if found is not None for sure in [found[1]]]
    return Shot(
        seen.count,
        presence,
        framed[0] if framed else None,
        viewed[0] if viewed else None,
        float(np.mean(told)) * nearest.score if told else None,
        collage,
    )


def framing_of(pose: BodyPose, size: tuple[int, int]) -> tuple[FramingName, float] | None:
    """Tell how much of a person is within a picture, and how sure that is; None where the body lies or is cut oddly."""
    heights = [float(pose.points[list(pair), 1].mean()) for pair in _JOINTS]
    across = abs(float(pose.points[list(_HIPS), 0].mean() - pose.points[list(_SHOULDERS), 0].mean()))
    if heights[1] - heights[0] <= across:
        return None
    top, bottom = _along(0.0, heights), _along(float(size[1]), heights)
    if _within(pose, _NOSE, size):
        framing: FramingName = next((name for name, most in _LOWER_EDGES if bottom < most), "full_body")
        if framing == "full_body" and not any(_within(pose, joint, size) for joint in _ANKLES):
            return None
        return framing, _surety(min(abs(bottom - most) for _, most in _LOWER_EDGES) / 0.3)
    if bottom < _UPPER:
        return None
    return ("lower_body" if top > _WAIST else "three_quarter_lower"), _surety(abs(top - _WAIST) / 0.3)


def view_of(pose: BodyPose, size: tuple[int, int], *, has_face: bool) -> tuple[ViewName, float] | None:
    """Tell from where a person is seen, and how sure that is; None where face and body disagree.

    Args:
        pose: The person.
        size: Width and height of the picture.
        has_face: Whether the face network, which knows no backs of heads, found the person's face.
    """
    turn = np.zeros(2)
    for pair in (_SHOULDERS, _EARS):
        left, right = pair
        if pair == _SHOULDERS and not all(_within(pose, joint, size, slack=0.1) for joint in pair):
            continue
        line = np.array([pose.points[left, 0] - pose.points[right, 0], abs(pose.depth[left] - pose.depth[right])])
        length = float(np.hypot(*line))
        turn += line / length if length > 0 else 0.0
    degrees = float(np.degrees(np.arctan2(turn[1], turn[0])))
    if degrees > _SIDE_TO and has_face:
        return None
    view: ViewName = "front" if degrees < _SIDE_FROM else "side" if degrees < _SIDE_TO else "back"
    return view, _surety(min(abs(degrees - _SIDE_FROM), abs(degrees - _SIDE_TO)) / 25)


def _along(row: float, heights: Sequence[float]) -> float:
    """Return where on a body a row of the picture lies: 0 at the shoulders, 3 at the ankles, beyond them in step."""
    for index in range(len(heights) - 1):
        start, end = heights[index], heights[index + 1]
        if end - start < 1:
            return float(index)  # a joint that is not below the one before it ends what can be measured
        if row < end or index == len(heights) - 2:
            return index + (row - start) / (end - start)
    raise AssertionError("the last part returns")


def _within(pose: BodyPose, joint: int, size: tuple[int, int], slack: float = 0.0) -> bool:
    """Tell whether a joint is seen within the picture, or so much of its sides beyond it."""
    x, y = pose.points[joint]
    across, down = slack * size[0], slack * size[1]
    inside = -across <= x <= size[0] + across and -down <= y <= size[1] + down
    return bool(inside and (pose.seen[joint] > _LEAST_SEEN or slack > 0))


def _surety(distance: float) -> float:
    """Return how sure a decision is by its distance from where it would be another one: 0.5 there, 1 far away."""
    return float(0.5 + 0.5 * min(1.0, max(0.0, distance)))


def _trunk(pose: BodyPose) -> float:
    return float(np.linalg.norm(pose.points[list(_SHOULDERS)].mean(0) - pose.points[list(_HIPS)].mean(0)))


def is_face_of(face: Face, pose: BodyPose) -> bool:
    """Tell whether a face is that of a pose: the nose lies in its box, or near to it."""
    left, top, right, bottom = face.box
    wide, high = 0.25 * (right - left), 0.25 * (bottom - top)
    x, y = pose.points[_NOSE]
    return bool(left - wide <= x <= right + wide and top - high <= y <= bottom + high)


def _distinct(poses: Sequence[BodyPose]) -> list[BodyPose]:
    """Leave out poses of people who are there already, the most clearly seen first."""
    kept: list[BodyPose] = []
    for pose in sorted(poses, key=lambda one: -one.score):
        apart = _SAME_NOSE * _trunk(pose)
        if all(np.linalg.norm(pose.points[_NOSE] - one.points[_NOSE]) > apart for one in kept):
            kept.append(pose)
    return kept


def _nearest(
    image: Image.Image, finder: PeopleFinder, poses: Sequence[BodyPose], alone: Sequence[Face]
) -> BodyPose | None:
    """Return the pose of the person who is the nearest: a face without one is looked at again by itself."""
    largest = max(poses, key=_trunk, default=None)
    # A trunk is some two and a half faces long.
    if not alone or (largest is not None and _trunk(largest) >= 2.5 * _height(alone[0])):
        return largest
    face = alone[0]
    side = _AROUND_FACE * _height(face)
    left = round((face.box[0] + face.box[2] - side) / 2)
    top = round(face.box[1] - _ABOVE_FACE * _height(face))
    # Nothing is made up beyond the picture's edges: the window is cut by them.
    window = (max(0, left), max(0, top), min(image.width, round(left + side)), min(image.height, round(top + side)))
    found = [_moved(pose, window[:2]) for pose in finder.poses(image.crop(window))]
    return next((pose for pose in found if is_face_of(face, pose)), largest)


def _moved(pose: BodyPose, by: tuple[int, int]) -> BodyPose:
    return BodyPose(pose.points + np.array(by, np.float32), pose.seen, pose.depth, pose.score)


def _height(face: Face) -> float:
    return face.box[3] - face.box[1]
