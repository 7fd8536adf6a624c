"""Do to a picture what transforms ask for, and bring it to its bucket.

A picture stays RGB, upright, of whole pixels. Where a crop asks for more than there is, it takes what there is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance

from modelkit.errors import ModelError
from modelkit.pictures import border_colour, framed, over_white
from modelkit.sizes import MAX_PIXELS
from services.training.trainer.dataset.buckets import Box, Size
from services.training.trainer.dataset.transforms import OptionValue, PictureTransform, colour_of


class SubjectLooker(Protocol):
    """Finds what a picture is about."""

    def box(self, image: Image.Image, focus: str) -> Box | None:
        """Return the box of a picture's subject, or of its largest face; None where there is none."""
        ...

    def cut(self, image: Image.Image, network: str) -> Image.Image | None:
        """Return a picture with its subject alone, RGBA; None where nothing stands out."""
        ...


@dataclass(frozen=True, slots=True)
class DrawnVariant:
    """One picture that transforms made.

    Attributes:
        image: RGB.
        label: What sets it apart from others of the same original: `flipped`, `jittered 1`; empty for the plain one.
        warnings: What the caller should know of it.
    """

    image: Image.Image
    label: str = ""
    warnings: tuple[str, ...] = ()

    def warned(self, image: Image.Image, warning: str) -> DrawnVariant:
        """Return it with another picture, and a warning where there is one."""
        return replace(self, image=image, warnings=(*self.warnings, warning) if warning else self.warnings)


def transformed(
    image: Image.Image, transforms: tuple[PictureTransform, ...], looker: SubjectLooker, seed: str
) -> Iterator[DrawnVariant]:
    """Yield the pictures that transforms make of one, the plain one first; each is made when its turn comes.

    Args:
        image: RGB or RGBA; what is transparent becomes white.
        transforms: What to do, in this order.
        looker: Finds subjects.
        seed: What colours are drawn by; the same seed draws the same.

    Raises:
        ModelError: A picture would become too large.
    """

    def follow(one: DrawnVariant, place: int) -> Iterator[DrawnVariant]:
        if place == len(transforms):
            yield one
            return
        transform = transforms[place]
        lots = random.Random(f"{seed}/{place}/{one.label}")  # noqa: S311 -- colours, no secret
        for made in _MAKERS[transform.type](one, transform.options, looker, lots):
            yield from follow(made, place + 1)

    return follow(DrawnVariant(over_white(image)), 0)


def in_bucket(image: Image.Image, box: Box, bucket: Size) -> Image.Image:
    """Return what lies in a box of a picture, at a bucket's size."""
    if image.size == bucket and box == (0, 0, *bucket):
        return image
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box)


def cropped_shape(size: Size, options: Mapping[str, OptionValue]) -> Size | None:
    """Return the width and height that a crop asks for, at most those that there are; None where it names none."""
    if "size" in options:
        wanted = int(options["size"]), int(options["size"])
    elif "width" in options:
        wanted = int(options["width"]), int(options["height"])
    elif "aspect_ratio" in options:
        aspect = float(options["aspect_ratio"])
        width = min(size[0], size[1] * aspect)
        return max(1, round(width)), max(1, round(width / aspect))
    else:
        return None
    return min(wanted[0], size[0]), min(wanted[1], size[1])


_Maker = Callable[[DrawnVariant, Mapping[str, OptionValue], SubjectLooker, random.Random], Iterator[DrawnVariant]]


def _resize(
    one: DrawnVariant, options: Mapping[str, OptionValue], _looker: SubjectLooker, _lots: random.Random
) -> Iterator[DrawnVariant]:
    image = one.image
    if "size" in options:
        scale = int(options["size"]) / max(image.size)
    elif "height" not in options:
        scale = int(options["width"]) / image.width
    elif "width" not in options:
        scale = int(options["height"]) / image.height
    else:
        made = framed(image, int(options["width"]), int(options["height"]), options["fit"])  # type: ignore[arg-type] # one of its words
        yield replace(one, image=made)
        return
    size = _allowed(max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    yield replace(one, image=image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def _center_crop(
    one: DrawnVariant, options: Mapping[str, OptionValue], _looker: SubjectLooker, _lots: random.Random
) -> Iterator[DrawnVariant]:
    image = one.image
    shape = cropped_shape(image.size, options)
    assert shape is not None, "a crop to the centre names a shape"
    yield _cropped(one, ((image.width - shape[0]) // 2, (image.height - shape[1]) // 2), shape, options)


def _smart_crop(
    one: DrawnVariant, options: Mapping[str, OptionValue], looker: SubjectLooker, _lots: random.Random
) -> Iterator[DrawnVariant]:
    image = one.image
    focus = str(options["focus"])
    box = looker.box(image, focus)
    warning = "" if box is not None else f"smart_crop found no {focus}: the centre was taken"
    box = box or (0.0, 0.0, float(image.width), float(image.height))
    shape = cropped_shape(image.size, options)
    if shape is None:
        margin = float(options["margin"]) * max(box[2] - box[0], box[3] - box[1])
        left, top = max(0, round(box[0] - margin)), max(0, round(box[1] - margin))
        right, bottom = min(image.width, round(box[2] + margin)), min(image.height, round(box[3] + margin))
        yield one.warned(image.crop((left, top, right, bottom)), warning)
        return
    start = (
        _start(image.width, shape[0], (box[0] + box[2]) / 2),
        _start(image.height, shape[1], (box[1] + box[3]) / 2),
    )
    made = _cropped(one, start, shape, options)
    yield made.warned(made.image, warning)


def _pad(
    one: DrawnVariant, options: Mapping[str, OptionValue], _looker: SubjectLooker, _lots: random.Random
) -> Iterator[DrawnVariant]:
    image = one.image
    if "aspect_ratio" in options:
        aspect = float(options["aspect_ratio"])
        width, height = max(image.width, round(image.height * aspect)), max(image.height, round(image.width / aspect))
    else:
        width = max(image.width, int(options.get("width", options.get("size", 0))))
        height = max(image.height, int(options.get("height", options.get("size", 0))))
    if (width, height) == image.size:
        yield one
        return
    ground = colour_of(str(options["color"])) or border_colour(image)
    canvas = Image.new("RGB", _allowed(width, height), ground)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    yield replace(one, image=canvas)


def _flip(
    one: DrawnVariant, options: Mapping[str, OptionValue], _looker: SubjectLooker, lots: random.Random
) -> Iterator[DrawnVariant]:
    turn = Image.Transpose.FLIP_LEFT_RIGHT if options["direction"] == "horizontal" else Image.Transpose.FLIP_TOP_BOTTOM
    changed = lots.random() < float(options["probability"])
    if options["keep_original"] or not changed:
        yield one
    if changed:
        yield replace(one, image=one.image.transpose(turn), label=_labelled(one.label, "flipped"))


def _color_jitter(
    one: DrawnVariant, options: Mapping[str, OptionValue], _looker: SubjectLooker, lots: random.Random
) -> Iterator[DrawnVariant]:
    changed = lots.random() < float(options["probability"])
    if options["keep_original"] or not changed:
        yield one
    for number in range(int(options["copies"]) if changed else 0):
        image = one.image
        for name, enhance in _ENHANCERS.items():
            reach = float(options[name])
            if reach:
                image = enhance(image).enhance(lots.uniform(1 - reach, 1 + reach))
        if options["hue"]:
            image = _hue_turned(image, lots.uniform(-1, 1) * float(options["hue"]))
        yield replace(one, image=image, label=_labelled(one.label, f"jittered {number + 1}"))


def _remove_background(
    one: DrawnVariant, options: Mapping[str, OptionValue], looker: SubjectLooker, _lots: random.Random
) -> Iterator[DrawnVariant]:
    cut = looker.cut(one.image, str(options["model"]))
    if cut is None:
        yield one.warned(one.image, "remove_background found nothing that stands out: the picture stayed as it is")
        return
    ground = colour_of(str(options["color"])) or border_colour(one.image)
    canvas = Image.new("RGBA", cut.size, (*ground, 255))
    yield replace(one, image=Image.alpha_composite(canvas, cut).convert("RGB"))


def _allowed(width: int, height: int) -> Size:
    if width * height > MAX_PIXELS:
        raise ModelError(f"The transforms would make it {width} x {height} pixels large.")
    return width, height


def _cropped(
    one: DrawnVariant, start: tuple[int, int], shape: Size, options: Mapping[str, OptionValue]
) -> DrawnVariant:
    side = options.get("size")
    wanted = int(options.get("width", side or 0)), int(options.get("height", side or 0))
    warning = ""
    if wanted[0] > shape[0] or wanted[1] > shape[1]:
        warning = f"a crop to {wanted[0]} x {wanted[1]} pixels found {shape[0]} x {shape[1]}"
    left, top = start
    return one.warned(one.image.crop((left, top, left + shape[0], top + shape[1])), warning)


def _start(length: int, part: int, centre: float) -> int:
    return min(max(round(centre - part / 2), 0), length - part)


def _labelled(before: str, more: str) -> str:
    return f"{before}, {more}" if before else more


def _hue_turned(image: Image.Image, share: float) -> Image.Image:
    """Turn all hues by a share of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int16) + round(share * 256)) % 256
    merged = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value))
    return merged.convert("RGB")


_ENHANCERS: dict[str, Callable[[Image.Image], ImageEnhance.Brightness | ImageEnhance.Contrast | ImageEnhance.Color]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
_MAKERS: dict[str, _Maker] = {
    "resize": _resize,
    "center_crop": _center_crop,
    "smart_crop": _smart_crop,
    "pad": _pad,
    "flip": _flip,
    "color_jitter": _color_jitter,
    "remove_background": _remove_background,
}
