"""Clips of keyframes: pictures in between by optical flow, enlarged without flicker, and written as a file to play.

A model draws few frames, and small ones. Between two neighbours the motion is found by dense optical flow (Kroeger et
al., "Fast optical flow using dense inverse search", ECCV 2016, as OpenCV has it) and spread evenly over time. Where a
clip is larger than its keyframes, the motion is applied to the still picture that the clip began with: its details
travel along, and do not flicker as they would if every frame were enlarged by itself. What the still picture does not
show, because it came into view later, is taken from the enlarged keyframes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Side of the grid on which motion is found. More finds no more motion in frames that are enlarged to it.
_GRID_SIDE = 256
# Grey levels between a keyframe and the moved still picture below which they are taken to show the same.
_SAME = 14.0
_QUALITY = "18"  # constant rate factor of H.264; from about 18 on nobody sees a difference


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is known of a keyframe, on the grid.

    Attributes:
        picture: The keyframe, (h, w, 3).
        moved: Where each of its places lies in the first keyframe, as a distance, (h, w, 2) in grid pixels.
        ahead: Flow to the next keyframe; zero for the last.
        back: Flow from the next keyframe to this one; zero for the last.
    """

    picture: Floats
    moved: Floats
    ahead: Floats
    back: Floats


class Clip:
    """Keyframes as an even flow of frames of any size.

    Args:
        keyframes: Two pictures or more, (h, w, 3) RGB.
        still: The picture that the first keyframe shows, (H, W, 3) RGB of the size of the frames.
        enlarged: Whether the frames take their details from the still picture; else from the keyframes.
    """

    def __init__(self, keyframes: Sequence[Frame], still: Frame, *, enlarged: bool) -> None:
        if len(keyframes) < 2:
            raise ValueError("a clip has at least two keyframes")
        self._still = still.astype(np.float32)
        self._enlarged = enlarged
        height, width = still.shape[:2]
        scale = min(1.0, _GRID_SIDE / max(width, height))
        self._grid = (max(16, round(width * scale)), max(16, round(height * scale)))
        self._sources = [self._resized(frame, (width, height)) for frame in keyframes] if not enlarged else []
        self._moments = self._measure([self._resized(frame, self._grid) for frame in keyframes])

    def frames(self, count: int) -> Iterator[Frame]:
        """Give `count` frames, evenly from the first keyframe to the last; the first is the still picture itself."""
        last = len(self._moments) - 1
        for number in range(count):
            at = number * last / max(1, count - 1)
            index = min(int(at), last - 1)
            if number == 0:
                yield _whole(self._still)
            elif self._enlarged:
                yield self._from_still(index, at - index)
            else:
                yield self._from_keyframes(index, at - index)

    def _measure(self, pictures: Sequence[Floats]) -> list[_Moment]:
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        greys = [cv2.cvtColor(_whole(picture), cv2.COLOR_RGB2GRAY) for picture in pictures]
        none: Floats = np.zeros((*greys[0].shape, 2), np.float32)
        moved = none
        moments: list[_Moment] = []
        for index, picture in enumerate(pictures):
            if index + 1 == len(pictures):
                moments.append(_Moment(picture, moved, none, none))
                break
            ahead = np.asarray(flow.calc(greys[index], greys[index + 1], none.copy()), np.float32)
            back = np.asarray(flow.calc(greys[index + 1], greys[index], none.copy()), np.float32)
            moments.append(_Moment(picture, moved, ahead, back))
            # A place of the next keyframe lies here in this one, and there this one's lies in the first.
            moved = back + _moved(moved, back)
        return moments

    def _between(self, index: int, part: float) -> tuple[Floats, Floats]:
        """Ways from a moment `part` of the way between two keyframes to either, on the grid."""
        here = self._moments[index]
        return np.float32(part) * here.back, np.float32(1 - part) * here.ahead

    def _from_keyframes(self, index: int, part: float) -> Frame:
        to_this, to_next = (self._spread(way) for way in self._between(index, part))
        this = _moved(self._sources[index], to_this)
        after = _moved(self._sources[index + 1], to_next)
        return _whole(np.float32(1 - part) * this + np.float32(part) * after)

    def _from_still(self, index: int, part: float) -> Frame:
        here, after = self._moments[index], self._moments[index + 1]
        to_this, to_next = self._between(index, part)
        near, far = np.float32(1 - part), np.float32(part)
        drawn = near * _moved(here.picture, to_this) + far * _moved(after.picture, to_next)
        way = near * (to_this + _moved(here.moved, to_this)) + far * (to_next + _moved(after.moved, to_next))
        # Light may change as things turn: its broad change is taken over, and only what differs beside it is new.
        change = drawn - _moved(self._moments[0].picture, way)
        light: Floats = np.asarray(cv2.GaussianBlur(change, (0, 0), self._grid[0] / 16), np.float32)
        strange = cv2.GaussianBlur(np.abs(change - light).max(axis=2), (0, 0), 2.0)
        known = np.exp(-((strange / _SAME) ** 2)).astype(np.float32)[..., None]
        size = (self._still.shape[1], self._still.shape[0])
        moved = _moved(self._still, self._spread(way)) + self._resized(light, size)
        share = self._resized(known, size).reshape(size[1], size[0], 1)
        return _whole(share * moved + (1 - share) * self._resized(drawn, size))

    def _spread(self, way: Floats) -> Floats:
        """Return a field of distances on the grid as one of the frames."""
        size = (self._still.shape[1], self._still.shape[0])
        if size == self._grid:
            return way
        scale = np.array([size[0] / self._grid[0], size[1] / self._grid[1]], np.float32)
        return self._resized(way, size) * scale

    @staticmethod
    def _resized(picture: NDArray[np.uint8] | Floats, size: tuple[int, int]) -> Floats:
        given: Floats = picture.astype(np.float32)
        if (given.shape[1], given.shape[0]) == size:
            return given
        smaller = size[0] < given.shape[1] or size[1] < given.shape[0]
        return np.asarray(
            cv2.resize(given, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC), np.float32
        )


class ClipWriter:
    """Writes frames into an mp4 file that browsers play while it loads: H.264, yuv420p, index in front.

    Args:
        path: The file.
        size: Width and height of the frames, both even.
        rate: Frames a second.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: int) -> None:
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": _QUALITY, "preset": "medium"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # Players take untagged colours for one standard or another; these say which.
        context.colorspace = Colorspace.ITU709
        context.color_primaries = 1
        context.color_trc = 1
        context.color_range = ColorRange.MPEG
        context.thread_count = 1  # one file for one clip, whatever the machine
        self._stream = stream

    def add(self, frame: Frame) -> None:
        """Write one frame, (h, w, 3) RGB."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what is left, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Let go of the file as it is; it cannot be played."""
        self._container.close()


def _moved(picture: Floats, way: Floats) -> Floats:
    """Return a picture as seen through a field of distances: each place shows what lies that far from it."""
    height, width = way.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(picture, x + way[..., 0], y + way[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.float32,
    )


def _whole(picture: Floats) -> Frame:
    frame: Frame = np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
    return frame
