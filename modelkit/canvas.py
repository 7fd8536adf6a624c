"""Draw an image into a frame: resample what the frame keeps, and extend the background into the padding."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelkit.framing import Frame

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Deviation of an edge's colours, in levels of 255, up to which the edge counts as plain background and is extended.
_PLAIN = 14.0

_Pixels = NDArray[np.uint8]


def draw(image: Image.Image, frame: Frame, resampling: str = "lanczos") -> Image.Image:
    """Draw the part of an image that a frame shows.

    Args:
        image: RGB, or RGBA, whose padding is transparent where its border is, else opaque.
        frame: The frame, with the result's size.
        resampling: Name of a filter in `RESAMPLING`.

    Returns:
        An image of the image's mode and exactly the frame's size.
    """
    width, height = frame.size
    scale_x, scale_y = width / frame.width, height / frame.height
    box = (
        max(0.0, frame.left),
        max(0.0, frame.top),
        min(float(image.width), frame.left + frame.width),
        min(float(image.height), frame.top + frame.height),
    )
    if box[0] >= box[2] or box[1] >= box[3]:  # the frame shows nothing of the image
        box = (0.0, 0.0, float(image.width), float(image.height))
        left, top, right, bottom = 0, 0, 0, 0
    else:
        left, top = round((box[0] - frame.left) * scale_x), round((box[1] - frame.top) * scale_y)
        right, bottom = round((box[2] - frame.left) * scale_x), round((box[3] - frame.top) * scale_y)
    # A sliver that rounds to no pixel still gets one.
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    shown = _resized(image, (right - left, bottom - top), box, resampling)
    if shown.size == (width, height):
        return shown
    canvas = np.empty((height, width, len(shown.getbands())), np.uint8)
    canvas[:] = _background(np.asarray(image))
    canvas[top:bottom, left:right] = np.asarray(shown)
    if canvas.shape[2] == 3 or canvas[..., 3].min() == 255:
        _extend(canvas, (left, top, right, bottom))
    return Image.fromarray(canvas)


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], resampling: str
) -> Image.Image:
    whole = all(edge == int(edge) for edge in box)
    if whole and (box[2] - box[0], box[3] - box[1]) == size:
        return image.crop(tuple(int(edge) for edge in box))  # type: ignore[arg-type] # four edges stay four
    # Pillow weighs colours by their opacity only in its premultiplied mode.
    source = image.convert("RGBa") if image.mode == "RGBA" else image
    return source.resize(size, RESAMPLING[resampling], box=box).convert(image.mode)


def _background(pixels: _Pixels) -> NDArray[np.float64]:
    """Return the border's median colour; transparent where most of the border is."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if border.shape[1] == 4:
        if np.median(border[:, 3]) < 128:
            return np.zeros(4)
        return np.append(np.median(border[border[:, 3] >= 128, :3], axis=0), 255)
    return np.asarray(np.median(border, axis=0))


def _extend(canvas: _Pixels, box: tuple[int, int, int, int]) -> None:
    """Extend each plain edge into the padding beside it: left and right first, then top and bottom at full width."""
    left, top, right, bottom = box
    rows = slice(top, bottom)
    band = max(1, min(right - left, bottom - top) // 64)
    if left > 0 and (edge := _edge(canvas[rows, left : left + band], 1)) is not None:
        canvas[rows, :left] = edge
    if right < canvas.shape[1] and (edge := _edge(canvas[rows, right - band : right], 1)) is not None:
        canvas[rows, right:] = edge
    if top > 0 and (edge := _edge(canvas[top : top + band], 0)) is not None:
        canvas[:top] = edge
    if bottom < canvas.shape[0] and (edge := _edge(canvas[bottom - band : bottom], 0)) is not None:
        canvas[bottom:] = edge


def _edge(band: _Pixels, axis: int) -> _Pixels | None:
    """Return the smoothed colours of an edge; None if it is no plain background."""
    profile = np.median(band, axis=axis, keepdims=True).astype(np.float32)
    length = profile.shape[1 - axis]
    reach = min(length - 1 + length % 2, max(3, length // 24 * 2 + 1)) | 1
    kernel = (reach, 1) if axis == 0 else (1, reach)
    smooth = cv2.blur(profile, kernel, borderType=cv2.BORDER_REPLICATE).reshape(profile.shape)
    if float(np.abs(band - smooth).std()) > _PLAIN or float(profile.std(axis=1 - axis).max()) > 3 * _PLAIN:
        return None
    return np.asarray(smooth.round(), dtype=np.uint8)
