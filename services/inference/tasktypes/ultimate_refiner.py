"""REFINE by SARTIQ_ULTIMATE_REFINER: a picture enlarged, then redrawn tile by tile, each tile checked; faces restored.

The provider's settings steer it (`SartiqUltimateRefinerConfig`, with its defaults). Of the task, `upscale_prompt`,
`upscale_steps`, `upscale_denoise` and `upscale_seed` have no effect here: the network of tiles draws without words, and
always the same. Faces are restored by version 1 alone, as LOCAL restores them. A tile that passes the checks in no
attempt stays what the plain enlargement shows. The network takes one tile at a time, whatever `max_workers` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.providers_pb2 import SartiqUltimateRefinerConfig
from atelier.tasks.v1.refine_pb2 import RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.logging import get_logger
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskContext
from modelkit.pictures import jpeg_quality, open_picture
from services.inference.targets import target_size
from services.inference.tasktypes.checks import check_needs, check_of, settings_of, share_of
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.pictures import save_png
from services.inference.tasktypes.refine import RefineAsked, read_asked

if TYPE_CHECKING:  # it imports OpenCV, which the parent never does
    from PIL import Image

    from modelkit.consistency import ConsistencyCheck, Scores
    from modelkit.faces import FaceArtist, FaceFinder
    from modelkit.refiner import Keep, TileArtist
    from modelkit.vision import Face

_log = get_logger(__name__)

_BASE = "base"
_UPSCALER = "upscaler"
_VISION = "vision"
_RESULT = "image.png"
# Shares of the work: enlarging, redrawing, and what is left for faces.
_ENLARGED, _REDRAWN = 0.1, 0.8


class UltimateRefinerHandler:
    """Refines REFINE tasks' pictures tile by tile."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_REFINE
    families: tuple[str, ...] = ("upscaler", "vision", "likeness")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return (InputRef(_BASE, task.refine.base_image_path or spec.refine.base_image_url, "image"),)

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Refine pictures one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that enlarge and redraw, find faces, and compare pictures where that is asked for."""
        settings = refiner_settings(spec, task)
        faces = [Need(_VISION, "vision")] if wants_faces(settings, read_asked(spec, task)) else []
        return (Need(_UPSCALER, "upscaler"), *faces, *check_needs(settings))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Refine each picture; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _refine(context, lent))


def handler() -> UltimateRefinerHandler:
    """Return the handler of the pipeline."""
    return UltimateRefinerHandler()


def refiner_settings(spec: CreateTask, task: Task) -> SartiqUltimateRefinerConfig:
    """Read the settings of the provider, with their defaults."""
    settings: SartiqUltimateRefinerConfig = settings_of(spec, task, SartiqUltimateRefinerConfig.DESCRIPTOR)
    return settings


def wants_faces(settings: SartiqUltimateRefinerConfig, asked: RefineAsked) -> bool:
    """Tell whether faces are to be restored."""
    return settings.version == "1" and asked.faces > 0


@dataclass(frozen=True, slots=True)
class RefinerParts:
    """Who does what for a picture.

    Attributes:
        enlarge: Makes the picture of a size, and reports (done, in all).
        tiles: Redraws tiles.
        workers: Tiles that it redraws at once.
        finder: Finds faces; None where none are wanted.
        faces: Redraws faces.
        check: Judges both.
    """

    enlarge: Callable[[Image.Image, int, int, Callable[[int, int], None]], Image.Image]
    tiles: TileArtist
    workers: int
    finder: FaceFinder | None
    faces: FaceArtist
    check: ConsistencyCheck


def refined(context: TaskContext, parts: RefinerParts, done: Callable[[float], None]) -> Output:
    """Refine a task's picture.

    Args:
        context: The task.
        parts: Who does what.
        done: Takes the share of the work that is done, 0 to 1; may raise to stop.
    """
    from modelkit.faces import FaceRestoration, FaceSettings  # noqa: PLC0415 -- OpenCV, never in the parent of a device

    began = time.monotonic()
    settings, asked = refiner_settings(context.spec, context.task), read_asked(context.spec, context.task)
    image = open_picture(context.inputs[_BASE])
    files = [OutputFile(_RESULT, "image/png", "result_image_path")]

    def keep(name: str, draft: Image.Image) -> None:
        save_png(draft, context.folder / f"debug-{name}.png")
        files.append(OutputFile(f"debug-{name}.png", "image/png", None))

    done(0.0)
    restoration, faces = None, None
    if parts.finder is not None:
        chosen = FaceSettings(settings.face_expand_percent, settings.feather_px, settings.max_retries)
        restoration = FaceRestoration(parts.finder, parts.faces, parts.check, chosen)
    if asked.enlarge:
        size = target_size(image.size, context.spec.refine)
        plain = parts.enlarge(image, *size, lambda step, total: done(_ENLARGED * step / total))
        drafts = keep if settings.save_debug_tiles else None
        image = _redrawn(context, parts, original=image, plain=plain, done=done, keep=drafts)
        if restoration is not None:
            # A face that a tile has changed could not be told from it: each is restored from the plain enlargement.
            faces = restoration.find(plain)
            image = _with_faces_of(plain, image, faces, settings)
    if restoration is not None:
        restored = restoration.restore(
            image,
            lambda share: done(_REDRAWN + (1 - _REDRAWN) * share),
            keep_drafts=settings.save_debug_tiles,
            faces=faces,
        )
        image = restored.image
        for number, face in enumerate(restored.faces, 1):
            _log.info("face_checked", job_id=context.job_id, face=number, attempts=face.attempts, **_shown(face.scores))
        for name, draft in restored.drafts.items():
            keep(name, draft)
    save_png(image, context.folder / _RESULT)
    done(1.0)
    return Output(TaskResult(refine=RefineTaskPublic()), tuple(files), time.monotonic() - began)


def _redrawn(
    context: TaskContext,
    parts: RefinerParts,
    *,
    original: Image.Image,
    plain: Image.Image,
    done: Callable[[float], None],
    keep: Keep | None,
) -> Image.Image:
    from modelkit.refiner import RefinerSettings, TiledRefiner  # noqa: PLC0415 -- as above

    settings = refiner_settings(context.spec, context.task)
    chosen = RefinerSettings(
        version="2" if settings.version == "2" else "1",
        tiles=settings.num_tiles,
        workers=parts.workers,
        max_retries=settings.max_retries,
        feather_px=settings.feather_px,
    )
    refiner = TiledRefiner(parts.tiles, parts.check, chosen)
    made, tiles = refiner.refine(original, plain, lambda share: done(_ENLARGED + (_REDRAWN - _ENLARGED) * share), keep)
    for number, tile in enumerate(tiles, 1):
        _log.info("tile_checked", job_id=context.job_id, tile=number, attempts=tile.attempts, **_shown(tile.scores))
    return made


def _with_faces_of(
    plain: Image.Image, image: Image.Image, faces: Sequence[Face], settings: SartiqUltimateRefinerConfig
) -> Image.Image:
    from modelkit.patches import grown  # noqa: PLC0415 -- as above
    from modelkit.refiner import spared  # noqa: PLC0415 -- as above

    boxes = [grown(face.box, settings.face_expand_percent) for face in faces]
    return spared(image, plain, boxes, settings.feather_px)


def _refine(context: TaskContext, lent: Mapping[str, Any]) -> Output:
    from modelkit.faces import NetworkFaces  # noqa: PLC0415 -- OpenCV, in the child alone
    from modelkit.refiner import NetworkTiles  # noqa: PLC0415 -- OpenCV, in the child alone

    settings, asked = refiner_settings(context.spec, context.task), read_asked(context.spec, context.task)
    quality = jpeg_quality(context.inputs[_BASE])

    def enlarge(image: Image.Image, width: int, height: int, step: Callable[[int, int], None]) -> Image.Image:
        made: Image.Image = lent[_UPSCALER].enlarge(image, width, height, step, faithful=True, jpeg_quality=quality)
        return made

    parts = RefinerParts(
        enlarge=enlarge,
        tiles=NetworkTiles(lent[_UPSCALER]),
        workers=1,
        finder=lent.get(_VISION),
        faces=NetworkFaces(lent[_UPSCALER], asked.faces, asked.face_seed),
        check=check_of(settings, lent),
    )
    return refined(context, parts, share_of(context))


def _shown(scores: Scores) -> dict[str, Any]:
    return {"passed": scores.passed, "ssim": scores.ssim, "lpips": scores.lpips, "dists": scores.dists}
