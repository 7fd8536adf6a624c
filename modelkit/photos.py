"""What a photo of a shoot shows, and how well it was taken: people, the garment's colour, sharpness, exposure.

The networks of `modelkit.vision` find people and the subject; all else is measured in the pixels. The limits were set
on the twelve photos of `tests/unit/modelkit/data/people` and on variants made of them; docs/task-types.md has the
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.pictures import over_white
from modelkit.shots import FramingName, PeopleFinder, PeopleSeen, ViewName, is_face_of, judge, look
from modelkit.vision import BodyPose, Face, Mask, Subject

Box = tuple[int, int, int, int]
Edges = tuple[float, float, float, float]
Levels = NDArray[np.uint8]
Exposure = Literal["normal", "over", "under"]
Side = Literal["left", "top", "right", "bottom"]

# Networks look at no more than this; boxes are told in pixels of the whole photo.
_MAX_SIDE = 1536
# Sharpness is measured on the subject, of this many pixels on its longer side at most.
_SHARPNESS_SIDE = 512
# Width of the window that the photo is blurred by once more.
_WINDOW = 9
# Of the twelve photos the least sharp measures 0.38. The least blurred of those that a Gaussian of 2 pixels has blurred
# measures 0.59, of those that a movement of 9 pixels has, 0.54.
BLURRED_FROM = 0.48
# Levels that count as burnt out, and as black.
_BURNT, _BLACK = 250, 5
# Share of the subject, or of the nearest face, that is burnt out: at most 0.04 in the photos, at least 0.12 with two
# stops more light.
OVER_FROM = 0.07
# The level that one pixel in a hundred exceeds: at least 188 in the photos, at most 136 with two stops less light.
UNDER_BELOW = 160
# How much of a side's length a subject may be away from the picture's edge and still be cut by it.
_CUT = 0.01
# Where the outline of a person is looked for around the joints, in shares of their box: to either side, below, and
# above where no face shows. Above a face it is so many of its heights.
_BESIDE, _BELOW, _ABOVE, _ABOVE_FACE = 0.35, 0.2, 0.25, 0.65
# Around a face whose body was not found, in sides of its box.
_BESIDE_FACE, _BELOW_FACE = 1.0, 3.0
_LEAST_SEEN = 0.5
# Fewer pixels than this tell no colour.
_LEAST_PIXELS = 64
_SHOULDERS, _HIPS = (11, 12), (24, 23)
JOINTS: Mapping[str, int] = MappingProxyType(
    {
        "nose": 0,
        "left_shoulder": 11,
        "right_shoulder": 12,
        "left_elbow": 13,
        "right_elbow": 14,
        "left_wrist": 15,
        "right_wrist": 16,
        "left_hip": 23,
        "right_hip": 24,
        "left_knee": 25,
        "right_knee": 26,
        "left_ankle": 27,
        "right_ankle": 28,
    }
)
# The names that a garment's colour may have, and what each looks like in cloth, in sRGB.
PALETTE: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "black": (24, 24, 26),
        "white": (238, 238, 236),
        "grey": (128, 128, 128),
        "red": (184, 30, 38),
        "orange": (226, 104, 36),
        "yellow": (230, 198, 50),
        "green": (52, 122, 62),
        "blue": (50, 100, 180),
        "navy": (30, 36, 70),
        "purple": (108, 60, 140),
        "pink": (228, 144, 174),
        "brown": (104, 68, 42),
        "beige": (210, 188, 156),
    }
)


class PhotoLooker(PeopleFinder, Protocol):
    """Finds people and the subject (`modelkit.vision.Vision`)."""

    def subject(self, image: Image.Image) -> Subject | None:
        """Find what the picture is about."""
        ...


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint of a body that lies within the photo.

    Attributes:
        name: One of `JOINTS`.
        x: Pixels from the left.
        y: Pixels from the top.
        confidence: How sure the network is to see it, 0 to 1.
    """

    name: str
    x: int
    y: int
    confidence: float


@dataclass(frozen=True, slots=True)
class FoundInPhoto:
    """A person or a face.

    Attributes:
        kind: What it is.
        confidence: How sure the network is, 0 to 1.
        box: Left, top, right, bottom in pixels, within the photo; right and bottom are exclusive.
        joints: Of a person: what is seen of the pose.
    """

    kind: Literal["person", "face"]
    confidence: float
    box: Box
    joints: tuple[Joint, ...] = ()


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour that dominates.

    Attributes:
        name: One of `PALETTE`.
        rgb: Median of the pixels that the name is nearest to, in sRGB.
        share: Their share of all that were looked at, 0 to 1.
    """

    name: str
    rgb: tuple[int, int, int]
    share: float


@dataclass(frozen=True, slots=True)
class Light:
    """How a photo is exposed.

    Attributes:
        median: Median level of the subject, or of the photo where it has none, 0 to 255.
        burnt: Share of it, or of the nearest face where that is more, that is burnt out.
        black: Share of it that is black. Black cloth is, so it decides nothing.
        brightest: The level that one pixel in a hundred exceeds, of the subject or of the photo, whichever is more.
    """

    median: float
    burnt: float
    black: float
    brightest: float

    @property
    def exposure(self) -> Exposure:
        """Whether there was too much light or too little."""
        if self.burnt > OVER_FROM:
            return "over"
        return "under" if self.brightest < UNDER_BELOW else "normal"


@dataclass(frozen=True, slots=True)
class ExaminedPhoto:
    """What was found in a photo.

    Attributes:
        size: Width and height in pixels, upright.
        people: How many people.
        presence: How sure that is: that somebody is there, or that nobody is.
        found: People and faces: the people first, the most clearly seen first.
        framing: How much of the nearest person is within the photo; None where it cannot be told.
        view: From where that person is seen; None where it cannot be told.
        shot_confidence: How sure framing and view are; None where neither was told.
        collage: Whether the photo was put together of several.
        subject: What the photo is about; None where nothing stands out.
        subject_box: Where that is.
        cut: Sides of the photo that cut it.
        garment: Colour of what the nearest person wears, or of a thing before a plain background.
        blur: How blurred the subject is, 0 to 1.
        light: How it is exposed.
    """

    size: tuple[int, int]
    people: int
    presence: float
    found: tuple[FoundInPhoto, ...]
    framing: FramingName | None
    view: ViewName | None
    shot_confidence: float | None
    collage: bool
    subject: Literal["person", "object"] | None
    subject_box: Box | None
    cut: tuple[Side, ...]
    garment: Colour | None
    blur: float
    light: Light

    @property
    def blurred(self) -> bool:
        """Whether the subject is blurred."""
        return self.blur >= BLURRED_FROM


def examine(image: Image.Image, looker: PhotoLooker) -> ExaminedPhoto:
    """Find all that can be found in a photo.

    Args:
        image: The photo, upright, RGB or RGBA.
        looker: Finds people and the subject in it.
    """
    work = image.copy()
    work.thumbnail((_MAX_SIDE, _MAX_SIDE), reducing_gap=3.0)
    subject = looker.subject(work)
    photo, work = over_white(image), over_white(work)
    scale = photo.width / work.width
    seen = look(work, looker)
    shot = judge(work, looker, seen)
    mask = None if subject is None else subject.mask
    found = _people(seen, mask if subject is not None and subject.kind == "person" else None, scale, photo.size)
    boxes = [one.box for one in found]
    box = None if subject is None else _scaled(subject.box, scale, photo.size)
    if boxes:  # where people are, they are the subject
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        box = (min(lefts), min(tops), max(rights), max(bottoms))
    nearest_face = max(seen.faces, key=lambda face: face.box[3] - face.box[1], default=None)
    return ExaminedPhoto(
        size=photo.size,
        people=shot.people,
        presence=shot.presence,
        found=tuple(found),
        framing=shot.framing,
        view=shot.view,
        shot_confidence=shot.confidence,
        collage=shot.collage,
        subject="person" if boxes else None if subject is None or subject.kind == "person" else "object",
        subject_box=box,
        cut=() if box is None else cut_sides(box, photo.size),
        garment=_garment(work, seen.nearest, subject, people=shot.people),
        blur=blur_of(_levels(photo if box is None else photo.crop(box), _SHARPNESS_SIDE)),
        light=light_of(_levels(work), mask, None if nearest_face is None else nearest_face.box),
    )


def blur_of(levels: Levels) -> float:
    """Measure how blurred grey levels are, 0 to 1: how little a picture changes by being blurred once more.

    The no-reference metric of Crété-Roffet et al. (The blur effect, 2007), in the direction that is blurred more. It is
    of differences relative to each other, so that light and contrast do not count.
    """
    grey = levels.astype(np.float32)
    worst = 0.0
    for axis in (0, 1):
        if grey.shape[axis] < 2:
            continue
        window = (1, _WINDOW) if axis == 0 else (_WINDOW, 1)
        again = cv2.blur(grey, window, borderType=cv2.BORDER_REFLECT)
        steps = np.abs(np.diff(grey, axis=axis))
        lost = np.maximum(0.0, steps - np.abs(np.diff(again, axis=axis)))
        total = float(steps.sum())
        # What has no steps at all shows nothing that could be sharp.
        worst = max(worst, (total - float(lost.sum())) / total if total > 0 else 1.0)
    return worst


def light_of(levels: Levels, mask: Mask | None = None, face: Sequence[float] | None = None) -> Light:
    """Measure the light of grey levels.

    Args:
        levels: The photo.
        mask: True on the subject; None where there is none.
        face: Box of the nearest face.
    """
    subject = levels[mask] if mask is not None and mask.any() else levels.ravel()
    burnt = float((subject >= _BURNT).mean())
    if face is not None:
        left, top, right, bottom = (max(0, round(edge)) for edge in face)
        part = levels[top:bottom, left:right]
        burnt = max(burnt, float((part >= _BURNT).mean()) if part.size else 0.0)
    brightest = max(float(np.percentile(subject, 99)), float(np.percentile(levels, 99)))
    return Light(float(np.median(subject)), burnt, float((subject <= _BLACK).mean()), brightest)


def dominant(pixels: NDArray[np.uint8]) -> Colour | None:
    """Name the colour that dominates (n, 3) sRGB pixels: each votes for the nearest of the palette in CIELAB.

    Returns:
        The colour with the most votes; None where there are too few pixels to tell.
    """
    if len(pixels) < _LEAST_PIXELS:
        return None
    names = list(PALETTE)
    references = _lab(np.array([PALETTE[name] for name in names], np.uint8))
    votes = np.linalg.norm(_lab(pixels)[:, None] - references[None], axis=-1).argmin(1)
    counts = np.bincount(votes, minlength=len(names))
    best = int(counts.argmax())
    red, green, blue = (round(float(level)) for level in np.median(pixels[votes == best], 0))
    return Colour(names[best], (red, green, blue), float(counts[best] / len(votes)))


def cut_sides(box: Box, size: tuple[int, int]) -> tuple[Side, ...]:
    """Return the sides of a picture of this width and height that a subject reaches to."""
    across, down = _CUT * size[0], _CUT * size[1]
    reached: tuple[tuple[Side, bool], ...] = (
        ("left", box[0] <= across),
        ("top", box[1] <= down),
        ("right", box[2] >= size[0] - across),
        ("bottom", box[3] >= size[1] - down),
    )
    return tuple(side for side, is_cut in reached if is_cut)


def _people(seen: PeopleSeen, mask: Mask | None, scale: float, size: tuple[int, int]) -> list[FoundInPhoto]:
    people = []
    for pose in seen.poses:
        face = next((one for one in seen.faces if is_face_of(one, pose)), None)
        body = _body_box(pose, face, (size[0] / scale, size[1] / scale))
        left, top, right, bottom = body
        wide, high = right - left, bottom - top
        above = top - _ABOVE * high if face is None else face.box[1] - _ABOVE_FACE * (face.box[3] - face.box[1])
        window = (left - _BESIDE * wide, above, right + _BESIDE * wide, bottom + _BELOW * high)
        sure = pose.score if face is None else max(pose.score, face.score)
        box = _scaled(_outlined(body, mask, window), scale, size)
        people.append(FoundInPhoto("person", min(1.0, sure), box, _joints(pose, scale, size)))
    for face in seen.alone:
        left, top, right, bottom = face.box
        wide, high = right - left, bottom - top
        beside = _BESIDE_FACE * wide
        window = (left - beside, top - _ABOVE_FACE * high, right + beside, bottom + _BELOW_FACE * high)
        people.append(FoundInPhoto("person", face.score, _scaled(_outlined(face.box, mask, window), scale, size)))
    return people + [FoundInPhoto("face", face.score, _scaled(face.box, scale, size)) for face in seen.faces]


def _body_box(pose: BodyPose, face: Face | None, size: tuple[float, float]) -> Edges:
    """Return the box of the joints and of the face; a joint beyond the picture's edge says that the body reaches it."""
    points = np.clip(pose.points, 0, np.array(size))
    (left, top), (right, bottom) = points.min(0), points.max(0)
    box = (float(left), float(top), float(right), float(bottom))
    return box if face is None else _joined(box, face.box)


def _outlined(body: Edges, mask: Mask | None, window: Edges) -> Edges:
    """Return the box of a body and of what the outline of the picture's people shows of it within a window."""
    if mask is None:
        return body
    left, top, right, bottom = (max(0, round(edge)) for edge in window)
    part = mask[top:bottom, left:right]
    if not part.any():
        return body
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    outline = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return _joined(body, outline)


def _joined(one: Edges, other: Edges) -> Edges:
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def _joints(pose: BodyPose, scale: float, size: tuple[int, int]) -> tuple[Joint, ...]:
    joints = []
    for name, index in JOINTS.items():
        x, y = (round(float(place) * scale) for place in pose.points[index])
        if pose.seen[index] > _LEAST_SEEN and 0 <= x < size[0] and 0 <= y < size[1]:
            joints.append(Joint(name, x, y, float(pose.seen[index])))
    return tuple(joints)


def _garment(work: Image.Image, nearest: BodyPose | None, subject: Subject | None, *, people: int) -> Colour | None:
    pixels = np.asarray(work)
    if nearest is None:
        # Of a person whose body was not found, nobody knows where the cloth is.
        return None if people or subject is None or subject.kind == "person" else dominant(pixels[subject.mask])
    torso = np.zeros(pixels.shape[:2], np.uint8)
    corners = np.round(nearest.points[[*_SHOULDERS, *_HIPS]]).astype(np.int32)
    cv2.fillConvexPoly(torso, cv2.convexHull(corners), 1)
    worn = torso > 0
    if subject is not None and subject.kind == "person" and (worn & subject.mask).sum() >= _LEAST_PIXELS:
        worn &= subject.mask
    return dominant(pixels[worn])


def _levels(image: Image.Image, side: int | None = None) -> Levels:
    if side is not None and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(image.convert("L"))


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    shown = np.ascontiguousarray(pixels[None].astype(np.float32) / 255)
    return np.asarray(cv2.cvtColor(shown, cv2.COLOR_RGB2LAB)[0], np.float32)


def _scaled(box: Sequence[float], scale: float, size: tuple[int, int]) -> Box:
    """Return a box in whole pixels of the photo, within it and never empty."""
    left = min(size[0] - 1, max(0, round(box[0] * scale)))
    top = min(size[1] - 1, max(0, round(box[1] * scale)))
    right = max(left + 1, min(size[0], round(box[2] * scale)))
    bottom = max(top + 1, min(size[1], round(box[3] * scale)))
    return left, top, right, bottom
