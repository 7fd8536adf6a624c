"""The family of vision networks: where the subject of a picture is, a person or a thing before a plain background.

The networks are the `.tflite` files that the package `mediapipe` ships, run by LiteRT; mediapipe's own code is not
imported. The person network marks cats and cups as well, so its mask counts only where a face or a body is found.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from PIL import Image

from modelkit.card import ModelCard
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source

if TYPE_CHECKING:
    from modelkit.device import Device

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_WORK_SIDE = 512
_LEAST_SHARE = 0.002
_LEAST_SCORE = 0.5
# In many windows chance has many tries: a rocket's fin scored 0.505, the least of real faces 0.75.
_LEAST_FAR_SCORE = 0.6
_MOST_SHARE = 0.97
_FACES = "face_detection/face_detection_short_range"
_FACE_STRIDES = (8, 16, 16, 16)
_FAR_FACES = "face_detection/face_detection_full_range_sparse"
_BODIES = "pose_detection/pose_detection"
_BODY_STRIDES = (8, 16, 32, 32, 32)
_POSES = "pose_landmark/pose_landmark_full"
_PEOPLE = "selfie_segmentation/selfie_segmentation"
# The network for far faces sees 192 x 192 pixels, and is sure of faces that are a tenth of that. So pictures are
# searched in overlapping windows too: of this side, or of a sixth of the picture's where that is more.
_WINDOW = 480
# LiteRT packs weights and adds memory for activations: the networks take twelve times their files (measured).
_BYTES_PER_FILE_BYTE = 12


@dataclass(frozen=True, slots=True)
class Subject:
    """What a picture is about.

    Attributes:
        box: Left, top, right, bottom in pixels; right and bottom are exclusive.
        mask: (height, width), True on the subject.
        kind: How it was found.
    """

    box: tuple[float, float, float, float]
    mask: Mask
    kind: Literal["cutout", "person", "object"]


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a picture.

    Attributes:
        box: Left, top, right, bottom in pixels, from the brow to the chin; may reach past the picture's edge.
        score: How sure the network is, 0 to 1.
    """

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, slots=True)
class BodyPose:
    """Where the parts of one person's body are.

    Attributes:
        points: (33, 2), x and y in pixels of the picture, numbered as BlazePose does (arXiv:2006.10204): 11 and 12 are
            the shoulders, 23 and 24 the hips, 25 and 26 the knees, 27 and 28 the ankles.
        seen: (33,), how sure the network is to see each, 0 to 1.
        depth: (33,), how far behind the middle of the hips each is, in pixels of the picture; negative before it.
        score: How sure the network is that somebody is there, 0 to 1.
    """

    points: Floats
    seen: Floats
    depth: Floats
    score: float


@dataclass(frozen=True, slots=True)
class _Detection:
    """What a detector found: a box and points in pixels of the picture, and how sure it is."""

    box: tuple[float, float, float, float]
    points: Floats
    score: float


class VisionFamily:
    """Loads the vision networks, whose weights come with a Python package."""

    packaged = (ModelCard(name="mediapipe", architecture="mediapipe", license="Apache-2.0"),)

    def matches(self, card: ModelCard) -> bool:  # noqa: ARG002 -- the protocol's signature
        """Take no folder: the weights come with the package alone."""
        return False

    def size(self, source: Source, device: Device) -> int:  # noqa: ARG002 -- the protocol's signature
        """Count all networks."""
        return _size()

    def load(self, source: Source, device: Device) -> Vision:  # noqa: ARG002 -- the protocol's signature
        """Make a finder of subjects, which loads each network on its first use."""
        return Vision(device.threads)


class Vision:
    """Finds subjects; safe to share between threads, which take turns with the networks.

    Args:
        threads: Processor threads of a network; 0 leaves it to LiteRT.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        self._size = _size()
        self._networks: dict[str, _Network] = {}
        self._lock = threading.Lock()

    def subject(self, image: Image.Image) -> Subject | None:
        """Find the subject: what a transparent picture shows, else a person, else a thing on a plain background."""
        if image.mode == "RGBA":
            alpha = np.asarray(image.getchannel("A")) > 16
            if alpha.any() and not alpha.all():
                return _subject(alpha, "cutout")
        pixels = np.asarray(image.convert("RGB"))
        small = _reduced(pixels)
        thing = foreground(small)
        share = self._person(small)
        person = None if share is None else share > 0.5
        mask, kind = (person, "person") if person is not None else (thing, "object")
        if mask is None:
            return None
        if person is not None and thing is not None:
            # On a plain background the foreground has the better outline, and includes what the person holds.
            mask = mask | _touching(thing, mask)
        full = cv2.resize(mask.astype(np.uint8), (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_NEAREST)
        return _subject(full.astype(bool), kind)  # type: ignore[arg-type] # a literal, chosen above

    def faces(self, image: Image.Image) -> list[Face]:
        """Find all faces of an RGB picture, the largest first.

        Two networks look at the whole picture, for near and for far faces, and the latter at overlapping windows of a
        large one.
        """
        pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        with self._lock:
            found = self._faces(pixels, (0, 0, width, height), near=True)
            for window in _windows(width, height):
                found += self._faces(pixels, window, near=False)
        boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in (face.box for face in found)]
        kept = cv2.dnn.NMSBoxes(boxes, [face.score for face in found], _LEAST_SCORE, 0.3)
        faces = [found[index] for index in np.asarray(kept, dtype=int).ravel()]
        return sorted(faces, key=lambda face: (face.box[0] - face.box[2]) * (face.box[3] - face.box[1]))

    def person(self, image: Image.Image) -> Floats | None:
        """Return how surely each part of a picture shows people, or what they hold before a plain background.

        Returns:
            (rows, columns), 0 to 1, of the picture's extent and at most 512 on the longer side; None without a person.
        """
        pixels = _reduced(np.asarray(image.convert("RGB")))
        share = self._person(pixels)
        if share is None:
            return None
        thing = foreground(pixels)
        return share if thing is None else np.maximum(share, _touching(thing, share > 0.5).astype(np.float32))

    def pose(self, image: Image.Image) -> BodyPose | None:
        """Find the pose of the person that an RGB picture shows the most clearly; None where it shows nobody."""
        pixels = np.asarray(image.convert("RGB"))
        with self._lock:
            found = self._detections(_BODIES, _BODY_STRIDES, pixels, -1.0)
            if not found:
                return None
            return self._pose(pixels, max(found, key=lambda detection: detection.score))

    def poses(self, image: Image.Image) -> list[BodyPose]:
        """Find the pose of everybody whom an RGB picture shows, the most clearly seen first."""
        pixels = np.asarray(image.convert("RGB"))
        with self._lock:
            found = self._detections(_BODIES, _BODY_STRIDES, pixels, -1.0)
            boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in (one.box for one in found)]
            kept = cv2.dnn.NMSBoxes(boxes, [one.score for one in found], _LEAST_SCORE, 0.3)
            posed = [self._pose(pixels, found[index]) for index in np.asarray(kept, dtype=int).ravel()]
        return sorted((one for one in posed if one is not None), key=lambda one: -one.score)

    def likelihood(self, image: Image.Image) -> float:
        """Return how likely the detectors find it, 0 to 1, that an RGB picture shows a face or a body anywhere."""
        pixels = np.asarray(image.convert("RGB"))
        with self._lock:
            found = self._detections(_FACES, _FACE_STRIDES, pixels, -1.0, least=0.0)
            found += self._detections(_BODIES, _BODY_STRIDES, pixels, -1.0, least=0.0)
        return max(detection.score for detection in found)

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of all networks, including those not loaded yet."""
        return {self: self._size}

    def close(self) -> None:
        """Unload all networks."""
        with self._lock:
            self._networks.clear()
            self._size = 0

    def _pose(self, pixels: Pixels, body: _Detection) -> BodyPose | None:
        """Return the pose of a person who was found; None where the network sees nobody there."""
        network = self._network(_POSES)
        side = network.size[0]
        # The first point is between the hips, the second says how far and which way the body reaches.
        centre, reach = body.points[0], body.points[1] - body.points[0]
        turn = np.arctan2(reach[0], -reach[1])
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]]) @ rotation.T * 2.5 * np.hypot(*reach) + centre
        onto = np.array([[0, 0], [side, 0], [0, side]], np.float32)
        matrix = cv2.getAffineTransform(corners.astype(np.float32), onto)
        outputs = network(cv2.warpAffine(pixels, matrix, (side, side)) / 255)
        (presence,) = next(output.ravel() for output in outputs if output.size == 1)
        if presence < _LEAST_SCORE:
            return None
        points = next(output for output in outputs if output.size == 195).reshape(39, 5)[:33]
        back = cv2.invertAffineTransform(matrix)
        seen = 1 / (1 + np.exp(-np.clip(points[:, 3], -80, 80)))
        placed = points[:, :2] @ back[:, :2].T + back[:, 2]
        depth = points[:, 2] * np.hypot(back[0, 0], back[1, 0])
        return BodyPose(
            np.asarray(placed, np.float32), np.asarray(seen, np.float32), np.asarray(depth, np.float32), float(presence)
        )

    def _person(self, pixels: Pixels) -> Floats | None:
        """Return the person network's mask, 0 to 1, of the parts that touch a face or a body."""
        with self._lock:
            found = self._detections(_FACES, _FACE_STRIDES, pixels, -1.0)
            found += self._detections(_BODIES, _BODY_STRIDES, pixels, -1.0)
            if not found:
                return None
            network = self._network(_PEOPLE)
            height, width = network.size
            shown = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
            (share,) = network(shown)
        soft = np.asarray(cv2.resize(share[..., -1], (pixels.shape[1], pixels.shape[0])), np.float32)
        faces = np.zeros(soft.shape, bool)
        for left, top, right, bottom in (detection.box for detection in found):
            faces[max(0, int(top)) : max(0, int(bottom)) + 1, max(0, int(left)) : max(0, int(right)) + 1] = True
        mask = _touching(soft > 0.5, faces)
        if mask.mean() < _LEAST_SHARE:
            return None
        # The soft edge of the parts that count, and nothing of the others.
        reach = max(pixels.shape[:2]) // 64 * 2 + 1
        near = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
        return np.where(mask | (near & (soft <= 0.5)), soft, np.float32(0))

    def _faces(self, pixels: Pixels, window: tuple[int, int, int, int], *, near: bool) -> list[Face]:
        left, top, right, bottom = window
        part = pixels[top:bottom, left:right]
        found = self._detections(_FACES, _FACE_STRIDES, part, -1.0) if near else []
        far = self._detections(_FAR_FACES, (4,), part, -1.0, per_cell=1)
        found += [detection for detection in far if detection.score > _LEAST_FAR_SCORE]
        return [
            Face((x0 + left, y0 + top, x1 + left, y1 + top), detection.score)
            for detection in found
            for x0, y0, x1, y1 in [detection.box]
        ]

    def _detections(
        self,
        name: str,
        strides: tuple[int, ...],
        pixels: Pixels,
        low: float,
        per_cell: int = 2,
        *,
        least: float = _LEAST_SCORE,
    ) -> list[_Detection]:
        """Return what a detector finds of faces, or of the faces of bodies (BlazeFace, arXiv:1907.05047)."""
        network = self._network(name)
        side = network.size[0]
        height, width = pixels.shape[:2]
        scale = side / max(height, width)
        resized = cv2.resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))
        top, left = (side - resized.shape[0]) // 2, (side - resized.shape[1]) // 2
        canvas = np.zeros((side, side, 3), np.float32)
        canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
        raw, logits = sorted(network(canvas / 255 * (1 - low) + low), key=lambda out: -out.shape[-1])
        scores = 1 / (1 + np.exp(-np.clip(logits[:, 0], -80, 80)))
        chosen = np.flatnonzero(scores > least)
        found = []
        for index in chosen:
            corner = _anchors(side, strides, per_cell)[index] * side
            half = raw[index, 2:4] / 2
            shift = np.array([left, top])
            x0, y0, x1, y1 = (
                float(edge) for sign in (-1, 1) for edge in (raw[index, :2] + corner + sign * half - shift) / scale
            )
            points = np.asarray((raw[index, 4:].reshape(-1, 2) + corner - shift) / scale, np.float32)
            found.append(_Detection((x0, y0, x1, y1), points, float(scores[index])))
        return found

    def _network(self, name: str) -> _Network:
        if name not in self._networks:
            self._networks[name] = _Network(name, self._threads)
        return self._networks[name]


class _Network:
    def __init__(self, name: str, threads: int) -> None:
        folder = _folder()
        if folder is None:
            raise ModelError("This worker cannot find people: the networks are not installed.", ModelErrorKind.RESOURCE)
        content = (folder / f"{name}.tflite").read_bytes()
        self._interpreter: Any = Interpreter(model_content=content, num_threads=threads or None)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = self._interpreter.get_output_details()
        self.size = (int(self._input["shape"][1]), int(self._input["shape"][2]))

    def __call__(self, image: NDArray[Any]) -> list[Floats]:
        self._interpreter.set_tensor(self._input["index"], image[None].astype(np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output["index"])[0] for output in self._outputs]


def _folder() -> Path | None:
    spec = importlib.util.find_spec("mediapipe")  # which does not import the package
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "modules"


def _size() -> int:
    folder = _folder()
    files = (
        [] if folder is None else [folder / f"{name}.tflite" for name in (_FACES, _FAR_FACES, _BODIES, _POSES, _PEOPLE)]
    )
    return sum(file.stat().st_size for file in files if file.is_file()) * _BYTES_PER_FILE_BYTE


def foreground(pixels: Pixels) -> Mask | None:
    """Mask what differs from a plain background, which may have a smooth gradient.

    The background is a quadratic surface in CIELAB, fitted to the border's pixels. Pixels of a subject that reaches the
    border are left out as outliers.

    Returns:
        The mask; None where the border is not plain, or nothing or nearly everything differs from it.
    """
    height, width = pixels.shape[:2]
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = (columns.ravel() / max(1, width - 1)) - 0.5, (rows.ravel() / max(1, height - 1)) - 0.5
    surface = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    edge = max(1, min(height, width) // 32)
    border = (np.minimum(rows, height - 1 - rows) < edge) | (np.minimum(columns, width - 1 - columns) < edge)
    places = np.flatnonzero(border.ravel())
    inside = np.linalg.norm(lab[places] - np.median(lab[places], 0), axis=1) < 25
    if inside.mean() < 0.5:
        return None
    fit, spread = np.zeros((6, 3)), 0.0
    for _ in range(3):
        chosen = places[inside]
        fit = np.linalg.lstsq(surface[chosen], lab[chosen], rcond=None)[0]
        distance = np.linalg.norm(lab[places] - surface[places] @ fit, axis=1)
        spread = float(np.median(distance[inside])) * 1.4826
        inside = distance < max(4.0, 2.5 * spread)
        if inside.mean() < 0.4:
            return None
    if spread > 6:
        return None
    distance = np.linalg.norm(lab - surface @ fit, axis=1).reshape(height, width)
    mask = (distance > max(8.0, 4 * spread)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) if min(height, width) >= 128 else mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return None
    kept = np.isin(labels, 1 + np.flatnonzero(areas >= 0.03 * areas.max()))
    return kept if _LEAST_SHARE <= kept.mean() <= _MOST_SHARE else None


def _reduced(pixels: Pixels) -> Pixels:
    """Return a picture of at most the size that the networks need."""
    scale = min(1.0, _WORK_SIDE / max(pixels.shape[:2]))
    if scale == 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _touching(mask: Mask, other: Mask) -> Mask:
    """Return the connected parts of `mask` that overlap `other`."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    wanted = np.unique(labels[mask & other])
    return np.isin(labels, wanted[wanted > 0])


def _subject(mask: Mask, kind: Literal["cutout", "person", "object"]) -> Subject:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Subject(box, mask, kind)


def _windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return the windows to search for far faces: the picture, and squares that overlap by half."""
    windows = [(0, 0, width, height)]
    longer = max(width, height)
    if longer > _WINDOW:
        side = max(_WINDOW, longer // 6)
        lefts, tops = (_starts(length, side) for length in (width, height))
        windows += [(left, top, min(left + side, width), min(top + side, height)) for top in tops for left in lefts]
    return windows


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = -(-(length - side) // (side // 2)) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def _anchors(side: int, strides: tuple[int, ...], per_cell: int) -> Floats:
    """Return the centres that a detector's boxes are offsets from: `per_cell` for each cell and layer."""
    parts = []
    for stride in sorted(set(strides)):
        cells = side // stride
        rows, columns = np.mgrid[:cells, :cells]
        centres = np.stack([(columns + 0.5) / cells, (rows + 0.5) / cells], -1).reshape(-1, 1, 2)
        parts.append(centres.repeat(per_cell * strides.count(stride), 1).reshape(-1, 2))
    return np.concatenate(parts).astype(np.float32)
