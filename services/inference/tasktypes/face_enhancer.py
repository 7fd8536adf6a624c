"""FACE_ENHANCER: the faces of a picture restored, each checked to stay the same face.

With LOCAL members of `config` steer it, with SARTIQ_ULTIMATE_FACE_FIXER the settings of this provider; either are those
of the contract's `SartiqUltimateFaceFixerConfig`, with its defaults. Of these `face_prompt` has no effect here: faces
are found by a network that takes no words.

All faces are restored. A face that fails the checks is drawn again, with less freedom, up to `max_retries` times; the
best attempt is kept where none passes, and `fallback_used` says so. A picture without a face is its own result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.face_enhancer_pb2 import FaceEnhancerTaskPublic
from atelier.tasks.v1.providers_pb2 import SartiqUltimateFaceFixerConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskContext
from modelkit.pictures import open_picture
from services.inference.tasktypes.checks import check_needs, check_of, settings_of, share_of
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # they import OpenCV, which the parent never does
    from modelkit.consistency import ConsistencyCheck
    from modelkit.faces import FaceArtist, FaceFinder

_INPUT = "input"
_VISION = "vision"
_UPSCALER = "upscaler"
_RESULT = "image.png"


class FaceEnhancerHandler:
    """Restores the faces of FACE_ENHANCER tasks' pictures."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_FACE_ENHANCER
    families: tuple[str, ...] = ("vision", "upscaler", "likeness")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return (InputRef(_INPUT, task.face_enhancer.input_image_path or spec.face_enhancer.input_image, "image"),)

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Restore pictures one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that find faces, redraw them, and compare them where a check asks for that."""
        return (Need(_VISION, "vision"), Need(_UPSCALER, "upscaler"), *check_needs(face_settings(spec, task)))

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Restore each picture's faces; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _enhance(context, lent))


def handler() -> FaceEnhancerHandler:
    """Return the handler of the type."""
    return FaceEnhancerHandler()


def face_settings(spec: CreateTask, task: Task) -> SartiqUltimateFaceFixerConfig:
    """Read what steers a task, with its defaults."""
    settings: SartiqUltimateFaceFixerConfig = settings_of(spec, task, SartiqUltimateFaceFixerConfig.DESCRIPTOR)
    return settings


def faces_enhanced(
    context: TaskContext,
    finder: FaceFinder,
    artist: FaceArtist,
    check: ConsistencyCheck,
    done: Callable[[float], None],
    *,
    model: str,
) -> Output:
    """Restore the faces of a task's picture.

    Args:
        context: The task.
        finder: Finds them.
        artist: Redraws them.
        check: Judges them.
        done: Takes the share of the work that is done, 0 to 1; may raise to stop.
        model: Name of what redraws them, for the notes of the result.
    """
    from modelkit.faces import FaceRestoration, FaceSettings  # noqa: PLC0415 -- OpenCV, never in a device's parent

    began = time.monotonic()
    settings = face_settings(context.spec, context.task)
    image = open_picture(context.inputs[_INPUT])
    done(0.0)
    chosen = FaceSettings(settings.expand_percent, settings.feather_px, settings.max_retries)
    made = FaceRestoration(finder, artist, check, chosen).restore(image, done, keep_drafts=settings.save_debug_images)
    files = [OutputFile(_RESULT, "image/png", "result_image_path")]
    notes = noted(context.spec, context.task, lambda: _notes(settings, model))
    save_png(made.image, context.folder / _RESULT, notes)
    for name, draft in made.drafts.items():
        save_png(draft, context.folder / f"debug-{name}.png")
        files.append(OutputFile(f"debug-{name}.png", "image/png", None))
    result = FaceEnhancerTaskPublic(
        face_detected=bool(made.faces),
        attempts_used=max((face.attempts for face in made.faces), default=0),
        fallback_used=any(not face.scores.passed for face in made.faces),
    )
    if made.worst is not None:
        scores = made.worst.scores
        measured = {"ssim": scores.ssim, "lpips": scores.lpips, "dists": scores.dists}
        for name, score in measured.items():
            if score is not None:
                setattr(result, f"final_{name}_score", score)
    done(1.0)
    return Output(TaskResult(face_enhancer=result), tuple(files), time.monotonic() - began)


def _notes(settings: SartiqUltimateFaceFixerConfig, model: str) -> PictureNotes:
    names = ("expand_percent", "feather_px", "max_retries", "ssim_threshold", "lpips_threshold", "dists_threshold")
    return PictureNotes("FACE_ENHANCER", model=model, settings={name: getattr(settings, name) for name in names})


def _enhance(context: TaskContext, lent: Mapping[str, Any]) -> Output:
    from modelkit.faces import NetworkFaces  # noqa: PLC0415 -- OpenCV, in the child alone

    check = check_of(face_settings(context.spec, context.task), lent)
    artist = NetworkFaces(lent[_UPSCALER])
    return faces_enhanced(context, lent[_VISION], artist, check, share_of(context), model="realesrgan-x4plus")
