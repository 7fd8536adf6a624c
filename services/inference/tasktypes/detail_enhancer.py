"""DETAIL_ENHANCER: details of a garment brought back from a reference that shows them as they should be.

With LOCAL members of `config` steer it, with SARTIQ_ULTIMATE_GARMENT_FIXER the settings of this provider; either are
those of the contract's `SartiqUltimateGarmentFixerConfig`, with its defaults.

The garment is found in both pictures: by the pose and outline of who wears it, by its outline on a plain background, or
by U2-NetP. `detail_label` says whether it is worn above or below the waist. Colour and shading stay, and so does what
lies outside of the garment's box.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.detail_enhancer_pb2 import DetailEnhancerTaskPublic
from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.providers_pb2 import SartiqUltimateGarmentFixerConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.logging import get_logger
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskContext
from modelkit.pictures import open_picture
from services.inference.tasktypes.checks import check_needs, check_of, settings_of, share_of
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # they import OpenCV, which the parent never does
    from modelkit.consistency import ConsistencyCheck
    from modelkit.details import DetailArtist
    from modelkit.garment import Cutter, Looker

_log = get_logger(__name__)

_BASE = "base"
_REFERENCE = "reference"
_VISION = "vision"
_CUTOUT = "cutout"
_CUTTER = "u2netp"
_RESULT = "image.png"


class DetailEnhancerHandler:
    """Brings details back into DETAIL_ENHANCER tasks' pictures."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_DETAIL_ENHANCER
    families: tuple[str, ...] = ("vision", "cutout", "likeness")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the two pictures."""
        stored, asked = task.detail_enhancer, spec.detail_enhancer
        return (
            InputRef(_BASE, stored.base_image_path or asked.base_image, "image"),
            InputRef(_REFERENCE, stored.reference_image_path or asked.reference_image, "image"),
        )

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Work on pictures one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that find garments, and those that compare pictures where a check asks for that."""
        return (Need(_VISION, "vision"), Need(_CUTOUT, "cutout", _CUTTER), *check_needs(detail_settings(spec, task)))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Work on each picture; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _enhance(context, lent))


def handler() -> DetailEnhancerHandler:
    """Return the handler of the type."""
    return DetailEnhancerHandler()


def detail_settings(spec: CreateTask, task: Task) -> SartiqUltimateGarmentFixerConfig:
    """Read what steers a task, with its defaults."""
    settings: SartiqUltimateGarmentFixerConfig = settings_of(spec, task, SartiqUltimateGarmentFixerConfig.DESCRIPTOR)
    return settings


def label_of(spec: CreateTask, task: Task) -> str:
    """Return what the garment is; empty where the task does not say."""
    return (task.detail_enhancer if task.HasField("detail_enhancer") else spec.detail_enhancer).detail_label


@dataclass(frozen=True, slots=True)
class DetailParts:
    """Who does what for a picture.

    Attributes:
        looker: Finds people, and things on a plain background.
        cutter: Finds everything else.
        artist: Redraws tiles.
        check: Judges them.
    """

    looker: Looker
    cutter: Cutter
    artist: DetailArtist
    check: ConsistencyCheck


def details_enhanced(context: TaskContext, parts: DetailParts, done: Callable[[float], None]) -> Output:
    """Bring the details of a task's garment back.

    Args:
        context: The task.
        parts: Who does what.
        done: Takes the share of the work that is done, 0 to 1; may raise to stop.
    """
    from modelkit.details import DetailSettings, DetailTransfer  # noqa: PLC0415 -- OpenCV, never in a device's parent

    began = time.monotonic()
    settings = detail_settings(context.spec, context.task)
    base, reference = open_picture(context.inputs[_BASE]), open_picture(context.inputs[_REFERENCE])
    done(0.0)
    chosen = DetailSettings(
        label=label_of(context.spec, context.task),
        expand=settings.bbox_expand_percent,
        split=settings.split_threshold,
        feather_px=settings.feather_px,
        max_retries=settings.max_retries,
    )
    transfer = DetailTransfer(parts.looker, parts.cutter, parts.artist, parts.check, chosen)
    made = transfer.transfer(base, reference, done, keep_drafts=settings.save_debug_images)
    for number, tile in enumerate(made.tiles, 1):
        _log.info(
            "detail_checked",
            job_id=context.job_id,
            tile=number,
            attempts=tile.attempts,
            passed=tile.scores.passed,
            ssim=tile.scores.ssim,
            lpips=tile.scores.lpips,
            dists=tile.scores.dists,
            detail=[round(one, 2) for one in tile.detail],
        )
    files = [OutputFile(_RESULT, "image/png", "result_image_path")]
    notes = noted(context.spec, context.task, lambda: _notes(context, settings))
    save_png(made.image, context.folder / _RESULT, notes)
    for name, draft in made.drafts.items():
        save_png(draft, context.folder / f"debug-{name}.png")
        files.append(OutputFile(f"debug-{name}.png", "image/png", None))
    result = DetailEnhancerTaskPublic(fallback_used=any(not tile.scores.passed for tile in made.tiles))
    done(1.0)
    return Output(TaskResult(detail_enhancer=result), tuple(files), time.monotonic() - began)


def _notes(context: TaskContext, settings: SartiqUltimateGarmentFixerConfig) -> PictureNotes:
    names = ("bbox_expand_percent", "split_threshold", "feather_px", "max_retries", "ssim_threshold")
    settings_told = {name: getattr(settings, name) for name in (*names, "lpips_threshold", "dists_threshold")}
    label = label_of(context.spec, context.task) or None
    return PictureNotes("DETAIL_ENHANCER", settings={"detail_label": label, **settings_told})


def _enhance(context: TaskContext, lent: Mapping[str, Any]) -> Output:
    from modelkit.details import ReferenceDetails  # noqa: PLC0415 -- OpenCV, in the child alone

    check = check_of(detail_settings(context.spec, context.task), lent)
    parts = DetailParts(lent[_VISION], lent[_CUTOUT], ReferenceDetails(), check)
    return details_enhanced(context, parts, share_of(context))
