"""Work on the pictures of a dataset, one at a time, in the child's process. Tells what is done by lines of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from modelkit.errors import ModelError, ModelErrorKind
from modelkit.pictures import open_picture, over_white
from services.training.trainer.dataset.buckets import Box, Size, bucket_for, bucket_sizes, crop_to, enlargement
from services.training.trainer.dataset.describer import describe
from services.training.trainer.dataset.drawing import DrawnVariant, in_bucket, transformed
from services.training.trainer.dataset.fingerprints import Fingerprint, copies, fingerprint
from services.training.trainer.dataset.masks import mask_of
from services.training.trainer.dataset.seeing import PictureEyes
from services.training.trainer.dataset.transforms import parse_transforms

_THUMBNAIL_SIDE = 256
_LOOK_SIDE = 1024
_HASH_CHARS = 32
_SLIGHTLY_ENLARGED = 1.01


def do_job(job: dict[str, Any], out: TextIO) -> None:
    """Prepare pictures, or describe prepared ones.

    Args:
        job: What to do (`preparing.PictureWork` writes it).
        out: Takes what is done, one JSON object a line.

    Raises:
        ModelError: A picture for the captions cannot be read; those of the dataset are rejected one by one.
    """
    tell = _Teller(out)
    try:
        if job["work"] == "describe":
            _describe(job, tell)
        else:
            _Preparing(job, tell).run()
    except ModelError as error:
        if error.fault is ModelErrorKind.VALIDATION:
            raise
        tell(event="failed", message=error.message)


class _Teller:
    """Writes lines of JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, **event: Any) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def reject(self, picture: dict[str, Any], reason: str) -> None:
        """Tell that a picture is not trained on."""
        self(event="reject", index=picture["index"], reason=reason.rstrip("."))


def _describe(job: dict[str, Any], tell: _Teller) -> None:
    eyes = PictureEyes(job["threads"])
    for picture in job["pictures"]:
        tell(event="begun", stage="captioning", index=picture["index"])
        text = describe(open_picture(Path(picture["file"])), eyes)
        tell(event="described", index=picture["index"], text=text)


class _Preparing:
    """Judges pictures, transforms them, and writes them at their buckets' sizes."""

    def __init__(self, job: dict[str, Any], tell: _Teller) -> None:
        self._job = job
        self._tell = tell
        self._folder = Path(job["folder"])
        self._sizes = bucket_sizes(job["resolution"], job["multiple"], job["max_side"])
        self._transforms = parse_transforms(job["transforms"])
        self._eyes = PictureEyes(job["threads"])

    def run(self) -> None:
        for name in ("images", "masks", "thumbnails"):
            (self._folder / name).mkdir(exist_ok=True)
        kept = self._validated()
        for picture in kept:
            self._one(picture, "transforming", self._transform)

    def _validated(self) -> list[dict[str, Any]]:
        prints: dict[int, Fingerprint] = {}

        def judge(picture: dict[str, Any]) -> None:
            prints[picture["index"]] = self._judged(picture)

        pictures: list[dict[str, Any]] = self._job["pictures"]
        for picture in pictures:
            self._one(picture, "validating", judge)
        passed = [picture for picture in pictures if picture["index"] in prints]
        doubles = copies([prints[picture["index"]] for picture in passed])
        for place, original in sorted(doubles.items()):
            self._tell.reject(passed[place], f"shows the same picture as {passed[original]['name']}")
        return [picture for place, picture in enumerate(passed) if place not in doubles]

    def _one(self, picture: dict[str, Any], stage: str, work: Callable[[dict[str, Any]], None]) -> None:
        self._tell(event="begun", stage=stage, index=picture["index"])
        try:
            work(picture)
        except ModelError as error:
            if error.fault is not ModelErrorKind.VALIDATION:
                raise
            self._tell.reject(picture, f"cannot be used: {error.message}")
        except MemoryError:
            self._tell.reject(picture, "needs too much memory to work on")
        self._tell(event="done", stage=stage, index=picture["index"])

    def _judged(self, picture: dict[str, Any]) -> Fingerprint:
        image = over_white(open_picture(Path(picture["file"])))
        if (fault := self._too_small(image.size)) is not None:
            raise ModelError(fault)
        return fingerprint(image)

    def _too_small(self, size: Size) -> str | None:
        bucket = bucket_for(size, self._sizes)
        growth = enlargement(crop_to(size, bucket), bucket)
        if growth <= self._job["most_enlarged"]:
            return None
        return f"{size[0]} x {size[1]} pixels are too few for {bucket[0]} x {bucket[1]}."

    def _transform(self, picture: dict[str, Any]) -> None:
        image = open_picture(Path(picture["file"]))
        seed = f"{self._job['seed']}/{hashlib.sha256(image.tobytes()).hexdigest()}"
        made = [
            self._written(picture, variant, first=number == 0)
            for number, variant in enumerate(transformed(image, self._transforms, self._eyes, seed))
        ]
        self._tell(event="made", index=picture["index"], width=image.width, height=image.height, variants=made)

    def _written(self, picture: dict[str, Any], variant: DrawnVariant, *, first: bool) -> dict[str, Any]:
        size = variant.image.size
        if (fault := self._too_small(size)) is not None:
            raise ModelError(f"after its transforms, {fault}")
        bucket = bucket_for(size, self._sizes)
        box = crop_to(size, bucket)
        shown = in_bucket(variant.image, box, bucket)
        name = hashlib.sha256(f"{bucket}".encode() + shown.tobytes()).hexdigest()[:_HASH_CHARS]
        shown.save(self._folder / "images" / f"{name}.png", "PNG")
        small = shown.copy()
        small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        small.save(self._folder / "thumbnails" / f"{name}.webp", "WEBP", quality=85)
        warnings = list(variant.warnings)
        growth = enlargement(box, bucket)
        if growth > _SLIGHTLY_ENLARGED:
            warnings.append(f"is enlarged {growth:.1f} times")
        mask = self._masked(variant.image, box, bucket, name, warnings)
        if first and self._job["looks"]:
            look = variant.image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type] # four edges
            look.thumbnail((_LOOK_SIDE, _LOOK_SIDE))
            look.save(Path(picture["file"]).parent / f"look-{picture['index']}.png", "PNG", compress_level=1)
        return {
            "file": f"images/{name}.png",
            "thumbnail": f"thumbnails/{name}.webp",
            "mask": mask,
            "variant": variant.label,
            "bucket": list(bucket),
            "crop": [round(edge, 1) for edge in box],
            "warnings": warnings,
        }

    def _masked(self, image: Image.Image, box: Box, bucket: Size, name: str, warnings: list[str]) -> str | None:
        kind = self._job["masks"]
        if kind == "none":
            return None
        mask = mask_of(image, kind, self._eyes)
        if mask is None:
            warnings.append(f"no {kind} was found in it: all of it counts")
            return None
        in_bucket(mask, box, bucket).save(self._folder / "masks" / f"{name}.png", "PNG")
        return f"masks/{name}.png"
