"""REFINE: a picture enlarged, and optionally repainted by a model and its faces restored.

| step | what it does | where |
|---|---|---|
| enlarging | SPAN, to a factor or a size; a JPEG is cleaned first; transparency is kept | `upscale_enabled` |
| repainting | a FLUX model redraws the result tile by tile, from the prompt and the seed | `upscale_denoise` above 0 |
| faces | Real-ESRGAN redraws each face, and the result is checked to show the same one | `face_detail_enabled` |

`config.model` names the model that repaints, among those that the worker serves. The network of faces takes neither a
prompt nor steps; `face_detail_denoise` is the share of its drawing in the result, and the seed varies the drawing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atelier.tasks.v1.enums_pb2 import TaskType
from atelier.tasks.v1.providers_pb2 import LocalRefineConfig
from atelier.tasks.v1.refine_pb2 import CreateRefineTask, RefineTaskPublic
from atelier.tasks.v1.task_pb2 import CreateTask, Task, TaskResult

from meshkit.images.notes import PictureNotes
from meshkit.worker.handlers import InputRef, Need, Output, OutputFile, TaskCancelled, TaskContext
from modelkit.pictures import jpeg_quality, open_picture
from services.inference.targets import target_size
from services.inference.tasktypes.failures import one_by_one
from services.inference.tasktypes.members import steered
from services.inference.tasktypes.pictures import noted, save_png

if TYPE_CHECKING:  # it imports OpenCV, which the parent never does
    from PIL import Image

_BASE = "base"
_UPSCALER = "upscaler"
_VISION = "vision"
_MODEL = "model"
_RESULT = "image.png"
_PROMPT = "a sharp, detailed photo"
_STEPS = 20
_TICKS = 1000  # of progress


@dataclass(frozen=True, slots=True)
class RefineAsked:
    """What a task asks for, its defaults filled in."""

    enlarge: bool
    denoise: float
    seed: int
    faces: float
    face_seed: int
    model: str | None


class RefineHandler:
    """Refines REFINE tasks' pictures; models of torch take part only where repainting is asked for."""

    task_type: TaskType.ValueType = TaskType.TASK_TYPE_REFINE
    families: tuple[str, ...] = ("upscaler", "vision", "flux")

    def inputs(self, spec: CreateTask, task: Task) -> Sequence[InputRef]:
        """Name the picture."""
        return [InputRef(_BASE, task.refine.base_image_path or spec.refine.base_image_url, "image")]

    def batch_key(self, spec: CreateTask, task: Task) -> Hashable | None:  # noqa: ARG002 -- the protocol's signature
        """Refine pictures one by one."""
        return None

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        """Name the networks that enlarge and restore, and the model that repaints."""
        asked = read_asked(spec, task)
        needs = [Need(_UPSCALER, "upscaler")]
        if asked.faces > 0:
            needs.append(Need(_VISION, "vision"))
        if asked.enlarge and asked.denoise > 0:
            needs.append(Need(_MODEL, "flux", asked.model))
        return needs

    def run(self, batch: Sequence[TaskContext], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        """Refine each picture; one that fails does not fail the others."""
        return one_by_one(batch, lambda context: _refine(context, lent))


def handler() -> RefineHandler:
    """Return the handler of the type."""
    return RefineHandler()


def _refine(context: TaskContext, lent: Mapping[str, Any]) -> Output:
    began = time.monotonic()
    requested, asked = context.spec.refine, read_asked(context.spec, context.task)
    image = open_picture(context.inputs[_BASE])
    progress = _Progress(context, 1 + 3 * int(_MODEL in lent) + int(asked.faces > 0))
    if asked.enlarge:
        size = target_size(image.size, requested)
        image = lent[_UPSCALER].enlarge(
            image, *size, progress.tile, faithful=True, jpeg_quality=jpeg_quality(context.inputs[_BASE])
        )
    progress.next_part(1)
    if _MODEL in lent:
        image = _repainted(image, requested, asked, lent, progress)
        progress.next_part(3)
    if asked.faces > 0:
        image = _faces(image, asked, lent, progress)
    progress.check()
    notes = noted(context.spec, context.task, lambda: _notes(requested, asked, lent))
    save_png(image, context.folder / _RESULT, notes)
    progress.end()
    return Output(
        TaskResult(refine=RefineTaskPublic()),
        (OutputFile(_RESULT, "image/png", "result_image_path"),),
        time.monotonic() - began,
    )


def _repainted(
    image: Image.Image, requested: CreateRefineTask, asked: RefineAsked, lent: Mapping[str, Any], progress: _Progress
) -> Image.Image:
    from modelkit.tiling import RepaintCancelled, RepaintSettings, repaint  # noqa: PLC0415 -- OpenCV, in the child alone

    settings = RepaintSettings(_prompt(requested), requested.upscale_steps or _STEPS, asked.denoise, asked.seed)
    try:
        made = repaint(
            image, settings, lent[_MODEL], lent[_UPSCALER], done=progress.share, cancelled=progress.cancelled
        )
    except RepaintCancelled:
        raise TaskCancelled from None
    if image.mode == "RGBA":
        made.putalpha(image.getchannel("A"))
    return made


def _faces(image: Image.Image, asked: RefineAsked, lent: Mapping[str, Any], progress: _Progress) -> Image.Image:
    from modelkit.consistency import ConsistencyCheck, Thresholds  # noqa: PLC0415 -- OpenCV, in the child alone
    from modelkit.faces import FaceRestoration, FaceSettings, NetworkFaces  # noqa: PLC0415 -- OpenCV, in the child alone

    artist = NetworkFaces(lent[_UPSCALER], asked.faces, asked.face_seed)
    restoration = FaceRestoration(lent[_VISION], artist, ConsistencyCheck(Thresholds()), FaceSettings())
    return restoration.restore(image, progress.checked_share).image


def _prompt(requested: CreateRefineTask) -> str:
    return requested.upscale_prompt or _PROMPT


def _notes(requested: CreateRefineTask, asked: RefineAsked, lent: Mapping[str, Any]) -> PictureNotes:
    sizes = ("upscale_factor", "target_width", "target_height") if asked.enlarge else ()
    settings: dict[str, Any] = {name: getattr(requested, name) for name in sizes if requested.HasField(name)}  # type: ignore[arg-type] # three of its fields
    if asked.faces > 0:
        settings |= {"face_detail_denoise": asked.faces, "face_detail_seed": asked.face_seed}
    if _MODEL not in lent:
        return PictureNotes("REFINE", model="span" if asked.enlarge else None, settings=settings)
    settings |= {"steps": requested.upscale_steps or _STEPS, "strength": asked.denoise}
    return PictureNotes(
        "REFINE", prompt=_prompt(requested), model=lent[_MODEL].card.name, seed=asked.seed, settings=settings
    )


class _Progress:
    """Counts parts of a task's work, and ends the work between two of its steps where the task is cancelled.

    Args:
        context: The task.
        parts: Parts in all.
    """

    def __init__(self, context: TaskContext, parts: int) -> None:
        self._context = context
        self._parts = parts
        self._before = 0

    def check(self) -> None:
        """Stop where the task is cancelled."""
        if self._context.cancelled():
            raise TaskCancelled

    def cancelled(self) -> bool:
        """Tell whether the task is cancelled."""
        return self._context.cancelled()

    def tile(self, done: int, total: int) -> None:
        """Take note of a tile."""
        self.check()
        self._tell(done / total)

    def share(self, done: float) -> None:
        """Take note of the share of a part that is done; what does it asks by itself whether to stop."""
        self._tell(done)

    def checked_share(self, done: float) -> None:
        """Take note of the share of a part that is done."""
        self.check()
        self._tell(done)

    def next_part(self, width: int) -> None:
        """Begin what comes next, after something that counts as `width` parts."""
        self.check()
        self._before += width
        self._tell(0)

    def end(self) -> None:
        """Take note that all is done."""
        self._context.progress(_TICKS, _TICKS)

    def _tell(self, done: float) -> None:
        self._context.progress(min(_TICKS - 1, int(_TICKS * (self._before + done) / self._parts)), _TICKS)


def read_asked(spec: CreateTask, task: Task) -> RefineAsked:
    """Read what a task asks for; a direct run, which stores no task, has neither defaults nor seeds."""

    def requested(name: str, default: Any) -> Any:
        return getattr(spec.refine, name) if spec.refine.HasField(name) else default  # type: ignore[arg-type] # fields below

    config: LocalRefineConfig = steered(spec, task, LocalRefineConfig.DESCRIPTOR)
    faces = requested("face_detail_enabled", default=True)
    return RefineAsked(
        enlarge=requested("upscale_enabled", default=True),
        denoise=requested("upscale_denoise", 0.0),
        seed=requested("upscale_seed", _drawn(task.id, "upscale")),
        faces=requested("face_detail_denoise", 0.4) if faces else 0.0,
        face_seed=requested("face_detail_seed", _drawn(task.id, "faces")),
        model=config.model or None,
    )


def _drawn(job_id: str, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{job_id}:{what}".encode()).digest()[:8], "big") >> 1
