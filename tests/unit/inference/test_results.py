"""The last look at what leaves the child: refused content, and pictures that say nothing of their making."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_CONTENT_POLICY
from atelier.tasks.v1.task_pb2 import TaskResult
from PIL import Image

from meshkit.images.notes import PictureNotes, png_info, read_notes
from meshkit.worker.handlers import Lender, Output, OutputFile, TaskFailed
from modelkit.content import ContentFamily
from modelkit.device import Device
from modelkit.errors import ModelError
from modelkit.family import Source
from services.inference.child import ChildSettings, _lender
from services.inference.results import ResultReview
from tests.unit.worker.batches import Handler, Shelf, batch_runner, context

PHOTO = Path(__file__).parents[1] / "modelkit" / "data" / "astronaut.jpg"
_CHECKED = Source(ContentFamily.packaged[0])


@pytest.fixture(scope="module")
def photo_score() -> float:
    with Image.open(PHOTO) as image:
        return ContentFamily().load(_CHECKED, Device("cpu", 1)).score(image)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Output]:
    """Writes a photo with notes as the result of an attempt."""

    def write(kind: str = "image/png") -> Output:
        with Image.open(PHOTO) as image:
            notes = png_info(PictureNotes("GENERATION", prompt="a portrait"), image.size)
            image.save(tmp_path / "image.png", pnginfo=notes)
        return Output(TaskResult(), (OutputFile("image.png", kind, "result_path"),), 1.0)

    return write


def review(threshold: float = 0.0, *, notes: bool = True) -> ResultReview:
    settings = ChildSettings((), 1, "nowhere", "cpu", 1 << 30, 1, content_threshold=threshold, notes=notes)
    return ResultReview(_lender(settings, []), threshold=threshold, notes=notes)


def test_the_check_tells_a_photo_of_a_suited_person_as_harmless(photo_score: float) -> None:
    # The package's own code gives 0.015 for a larger cut of this photo.
    assert 0.0 < photo_score < 0.05


def test_what_is_transparent_is_judged_over_white() -> None:
    check = ContentFamily().load(_CHECKED, Device("cpu", 1))
    hidden = Image.new("RGBA", (64, 64), (230, 180, 150, 0))
    assert check.score(hidden) == pytest.approx(check.score(Image.new("RGB", (64, 64), "white")))
    assert check.score(hidden) != pytest.approx(check.score(hidden.convert("RGB")))
    check.close()
    assert check.holdings() == {check: 0}


def test_a_picture_above_the_threshold_is_refused_and_one_below_leaves(
    made: Callable[..., Output], tmp_path: Path, photo_score: float
) -> None:
    output, (attempt, _) = made(), context(tmp_path)
    assert review(min(1.0, photo_score * 2))(attempt, output) is output
    with pytest.raises(TaskFailed) as caught:
        review(photo_score / 2)(attempt, output)
    assert (caught.value.category, caught.value.retryable) == (ERROR_CATEGORY_CONTENT_POLICY, False)


def test_a_refusal_is_the_end_of_the_job_without_a_file(
    made: Callable[..., Output], tmp_path: Path, photo_score: float
) -> None:
    runner = batch_runner(Handler(made()), review=review(photo_score / 2))
    [done] = runner.execute([context(tmp_path)[0]])
    assert done.failure.category == ERROR_CATEGORY_CONTENT_POLICY
    assert not done.HasField("output")


def test_without_a_threshold_no_model_is_asked_for(made: Callable[..., Output], tmp_path: Path) -> None:
    class Empty:
        def lend(self, needs: object) -> Any:
            raise AssertionError("no model is needed")

    output = made()
    checked = ResultReview(cast("Lender", Empty()), threshold=0.0, notes=True)
    assert checked(context(tmp_path)[0], output) is output
    text = Output(TaskResult(), (), 0.0)
    assert ResultReview(cast("Lender", Empty()), threshold=0.5, notes=True)(context(tmp_path)[0], text) is text


def test_notes_are_taken_out_where_the_installation_wants_none(made: Callable[..., Output], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    output, (attempt, _) = made(), context(tmp_path)
    review()(attempt, output)
    assert read_notes(path) is not None
    with Image.open(path) as image:
        before = image.tobytes()
    review(notes=False)(attempt, output)
    with Image.open(path) as image:
        image.load()
        assert (image.info, image.tobytes()) == ({}, before)
    assert b"portrait" not in path.read_bytes()


def test_files_of_other_kinds_stay_as_they_are(made: Callable[..., Output], tmp_path: Path) -> None:
    output, (attempt, _) = made("application/octet-stream"), context(tmp_path)
    before = (tmp_path / "image.png").read_bytes()
    review(0.001, notes=False)(attempt, output)
    assert (tmp_path / "image.png").read_bytes() == before
    with Image.open(PHOTO) as image:
        image.save(tmp_path / "image.png", "JPEG")
    before = (tmp_path / "image.png").read_bytes()
    review(notes=False)(attempt, made_of("image/jpeg"))
    assert (tmp_path / "image.png").read_bytes() == before


def made_of(kind: str) -> Output:
    return Output(TaskResult(), (OutputFile("image.png", kind, "result_path"),), 1.0)


def test_a_fault_of_the_review_ends_its_member_alone(tmp_path: Path) -> None:
    def refuse(_: object, output: Output) -> Output:
        if output.device_seconds > 1:
            raise ModelError("no memory for the check")
        return output

    outputs = [Output(TaskResult(), (), seconds) for seconds in (1.0, 2.0)]
    runner = batch_runner(Handler(*outputs), Shelf(), review=refuse)
    first, second = runner.execute([context(tmp_path)[0], context(tmp_path)[0]])
    assert first.HasField("output")
    assert second.HasField("failure")
