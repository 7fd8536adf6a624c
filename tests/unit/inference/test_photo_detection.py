from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION
from atelier.tasks.v1.photo_detection_pb2 import CreatePhotoDetectionTask, PhotoDetectionTaskPublic, PhotoFindings
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from PIL import Image

from meshkit.worker.handlers import Output, TaskCancelled, TaskFailed
from modelkit.vision import Vision
from services.inference.tasktypes.photo_detection import PhotoDetectionHandler, handler

PHOTO = Path(__file__).parents[1] / "modelkit" / "data" / "people" / "obama.jpg"
LENT = {"vision": Vision(1)}


class Context:
    def __init__(self, photo: Path, *, cancelled: bool = False) -> None:
        self.job_id = "job"
        self.spec = CreateTask(photo_detection=CreatePhotoDetectionTask(input_image="a.jpg"))
        stored = PhotoDetectionTaskPublic(input_image_path="detections/job/inputs/input.jpg")
        self.task = Task(photo_detection=stored)
        self.inputs: Mapping[str, Path] = {"input": photo}
        self.refused_inputs: Mapping[str, str] = {}
        self.folder = photo.parent
        self.steps: list[tuple[int, int]] = []
        self._cancelled = cancelled

    def progress(self, step: int, total: int, preview: bytes | None = None) -> None:
        self.steps.append((step, total))

    def upscaling(self) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancelled


def outcome(context: Context) -> Any:
    one: PhotoDetectionHandler = handler()
    lent = {need.name: LENT[need.family] for need in one.needs(context.spec, context.task)}
    [made] = one.run([context], lent)
    return made


def test_a_photo_is_told_of_in_the_result() -> None:
    context = Context(PHOTO)
    made = outcome(context)
    assert isinstance(made, Output)
    assert made.files == ()
    assert context.steps == [(1, 2), (2, 2)]
    found: PhotoFindings = made.result.photo_detection.findings
    assert (found.width, found.height, found.people) == (410, 512, 1)
    assert [one.object_type for one in found.detections] == ["person", "face"]
    assert (found.framing, found.view_angle, found.subject) == ("upper_body", "front", "person")
    assert list(found.cut_sides) == ["bottom"]
    assert (found.blurred, found.exposure) == (False, "normal")
    assert found.garment_colour.hex.startswith("#")
    assert all(0 < one.bbox.width <= 410 and 0 < one.bbox.height <= 512 for one in found.detections)


def test_what_cannot_be_told_is_absent(tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (64, 48), (90, 90, 90)).save(plain)
    found: PhotoFindings = outcome(Context(plain)).result.photo_detection.findings
    assert found.people == 0
    absent = ("framing", "view_angle", "shot_confidence", "subject", "subject_box", "garment_colour")
    assert [name for name in absent if found.HasField(name)] == []  # type: ignore[arg-type] # six names of fields


def test_the_photo_is_the_one_that_was_stored() -> None:
    context = Context(PHOTO)
    assert handler().inputs(context.spec, context.task)[0].source == "detections/job/inputs/input.jpg"
    assert handler().inputs(context.spec, Task())[0].source == "a.jpg"
    assert handler().batch_key(context.spec, context.task) is None


def test_a_file_that_is_no_picture_fails_for_good(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    failed = outcome(Context(tmp_path / "broken.jpg"))
    assert isinstance(failed, TaskFailed)
    assert (failed.category, failed.retryable) == (ERROR_CATEGORY_VALIDATION, False)


def test_a_cancelled_one_stops() -> None:
    assert isinstance(outcome(Context(PHOTO, cancelled=True)), TaskCancelled)
