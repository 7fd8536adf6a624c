"""The hot folder: a workflow for each photo that was looked at, once, and its end told on the photo."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.json_format import MessageToDict
from PIL import Image

from meshkit.errors import ErrorKind, MeshError, invalid, not_found, unavailable
from services.monitoring.capture.detection.domain import DetectionOutcome
from services.monitoring.capture.postgres.detections import PostgresDetectionStore
from services.monitoring.capture.postgres.runs import PostgresRunStore
from services.monitoring.capture.runs.service import HotFolder, read_run_file
from tests.integration.capture.conftest import StartStudio, Studio
from tests.integration.capture.test_detection import drop

DEFINITION = """
name: Packshot
steps:
  - id: cut
    task_type: BACKGROUND_REMOVE
    config: {input_image_paths: ["@photo"]}
  - id: studio
    task_type: BACKGROUND_FIX
    depends_on: [cut]
    config: {palette_image: "@studio.png", strategy: replace}
    input_mappings:
      - {from_step: cut, from_field: result_image_paths, to_field: base_image, transform: first}
"""


class Workflows:
    """The workflows service as runs see it: a workflow for each key, which ends when a test says so."""

    def __init__(self) -> None:
        self.made: dict[UUID, workflow_pb2.CreateWorkflow] = {}
        self.ids: dict[UUID, UUID] = {}
        self.states: dict[UUID, workflow_pb2.WorkflowPublic] = {}
        self.failure: MeshError | None = None
        self.lost_answers = 0
        self.failing: UUID | None = None
        self.files: list[str] = []

    async def put(self, file: Path) -> str:
        self.files.append(file.name)
        return f"capture/{file.name}"

    async def create(self, workflow: workflow_pb2.CreateWorkflow, key: UUID) -> UUID:
        if self.failure is not None:
            raise self.failure
        if key == self.failing:
            raise MeshError(ErrorKind.INTERNAL, "Internal error", reason="INTERNAL")
        if key not in self.ids:
            self.ids[key], self.made[key] = uuid4(), workflow
            self.states[self.ids[key]] = workflow_pb2.WorkflowPublic(
                id=str(self.ids[key]), status=workflow_pb2.WORKFLOW_STATUS_RUNNING
            )
        if self.lost_answers:
            self.lost_answers -= 1
            raise unavailable("the answer was lost")
        return self.ids[key]

    async def get(self, workflow_id: UUID) -> workflow_pb2.WorkflowPublic:
        if self.failure is not None:
            raise self.failure
        if workflow_id not in self.states:
            raise not_found("Workflow", str(workflow_id))
        return self.states[workflow_id]

    def end(self, key: UUID, status: workflow_pb2.WorkflowStatus.ValueType, **results: Any) -> None:
        workflow = self.states[self.ids[key]]
        workflow.status = status
        if status == workflow_pb2.WORKFLOW_STATUS_FAILED:
            workflow.error_message = "Step cut failed: nothing stands out."
        for step, (task_type, result) in results.items():
            made = workflow.steps.add(step_id=step, task_type=task_type)
            made.result.update(result)


def definition(folder: Path, text: str = DEFINITION) -> Path:
    Image.new("RGB", (8, 8), "white").save(folder / "studio.png")
    (folder / "packshot.yaml").write_text(text)
    return folder / "packshot.yaml"


async def looked_at(studio: Studio, *names: str) -> list[UUID]:
    """Photos whose findings were written, as runs are made of them."""
    store = PostgresDetectionStore(studio.capture.changes, runs=True)
    found = []
    for name in names:
        await drop(studio, name, name.encode())
        [(photo_id,)] = await studio.rows("SELECT id FROM photos WHERE path = %s", f"left/{name}")
        outcome = DetectionOutcome({"people": 0}, (), stored_path=f"detections/{photo_id}/inputs/input.jpeg")
        assert await store.settle(photo_id, outcome)
        assert not await store.settle(photo_id, outcome)
        found.append(photo_id)
    return found


def hot_folder(studio: Studio, workflows: Workflows, file: Path) -> HotFolder:
    return HotFolder(
        PostgresRunStore(studio.capture.changes), workflows, read_run_file(file, "capture", "east"), studio.tenant
    )


async def run_of(studio: Studio, photo_id: UUID) -> Any:
    return (await studio.http().get(f"/photos/{photo_id}")).json()["run"]


async def test_each_photo_has_one_workflow_and_its_pictures_are_told(studio: Studio, tmp_path: Path) -> None:
    workflows = Workflows()
    workflows.lost_answers = 1
    hot = hot_folder(studio, workflows, definition(tmp_path))
    one, other = await looked_at(studio, "a.jpg", "b.jpg")
    assert await run_of(studio, one) == {"state": "WAITING", "workflow_id": None, "error": None, "result_paths": []}
    for _ in range(3):
        await hot.run_once()
    # Another process makes none again.
    await hot_folder(studio, workflows, definition(tmp_path)).run_once()
    assert set(workflows.made) == {one, other}
    made = workflows.made[one]
    assert (made.origin_instance, made.origin_zone, made.origin_reference) == ("capture", "east", str(one))
    configs = [MessageToDict(step.config) for step in made.steps]
    assert configs == [
        {"input_image_paths": [f"detections/{one}/inputs/input.jpeg"]},
        {"palette_image": "capture/studio.png", "strategy": "replace"},
    ]
    assert (await run_of(studio, one))["state"] == "RUNNING"
    workflows.end(
        *(one, workflow_pb2.WORKFLOW_STATUS_COMPLETED),
        cut=("BACKGROUND_REMOVE", {"result_image_paths": ["backgrounds/1/cut.png"]}),
        studio=("BACKGROUND_FIX", {"result_image_path": "backgrounds/2/studio.png"}),
    )
    workflows.end(other, workflow_pb2.WORKFLOW_STATUS_FAILED)
    await hot.run_once()
    told = await run_of(studio, one)
    assert (told["state"], told["workflow_id"]) == ("COMPLETED", str(workflows.ids[one]))
    assert told["result_paths"] == ["backgrounds/1/cut.png", "backgrounds/2/studio.png"]
    told = await run_of(studio, other)
    assert (told["state"], told["error"]) == ("FAILED", "Step cut failed: nothing stands out.")
    assert (await studio.http("others").get(f"/photos/{one}")).status_code == 404


async def test_runs_wait_while_workflows_is_away_and_what_is_refused_is_told(studio: Studio, tmp_path: Path) -> None:
    workflows = Workflows()
    hot = hot_folder(studio, workflows, definition(tmp_path))
    [photo_id] = await looked_at(studio, "a.jpg")
    workflows.failure = unavailable("away")
    await hot.run_once()
    assert (await run_of(studio, photo_id))["state"] == "WAITING"
    workflows.failure = None
    await hot.run_once()
    workflows.states.clear()
    await hot.run_once()
    assert (await run_of(studio, photo_id))["error"] == "The workflow is there no more."
    workflows.failure = invalid("workflow.steps[0].config", "is not served")
    [refused] = await looked_at(studio, "b.jpg")
    await hot.run_once()
    told = await run_of(studio, refused)
    assert (told["state"], told["error"]) == ("FAILED", "workflow.steps[0].config: is not served")


async def test_a_photo_that_workflows_fails_at_keeps_no_other_waiting_and_is_told_of(
    studio: Studio, tmp_path: Path
) -> None:
    workflows = Workflows()
    hot = hot_folder(studio, workflows, definition(tmp_path))
    bad, good = await looked_at(studio, "a.jpg", "b.jpg")
    workflows.failing = bad
    for _ in range(4):
        await hot.run_once()
    assert set(workflows.made) == {good}
    assert (await run_of(studio, bad))["state"] == "WAITING"
    await hot.run_once()
    told = await run_of(studio, bad)
    assert (told["state"], told["error"]) == ("FAILED", "Internal error")


async def test_no_more_workflows_run_than_may(studio: Studio, tmp_path: Path) -> None:
    workflows = Workflows()
    hot = hot_folder(studio, workflows, definition(tmp_path))
    await looked_at(studio, *(f"{number}.jpg" for number in range(6)))
    for _ in range(3):
        await hot.run_once()
    assert len(workflows.made) == 4
    for key in list(workflows.made)[:2]:
        workflows.end(key, workflow_pb2.WORKFLOW_STATUS_COMPLETED)
    await hot.run_once()
    assert len(workflows.made) == 6
    assert workflows.files == ["studio.png"], "a file beside the workflow is put into storage once"


async def test_without_the_setting_no_workflow_runs(studio: Studio) -> None:
    await drop(studio, "a.jpg")
    [(photo_id,)] = await studio.rows("SELECT id FROM photos")
    outcome = DetectionOutcome({"people": 0}, (), stored_path="a.jpg")
    await PostgresDetectionStore(studio.capture.changes).settle(photo_id, outcome)
    assert await run_of(studio, photo_id) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: [", "is no YAML"),
        ("- a", "holds no object"),
        (DEFINITION.replace("@photo", "a.png"), "has no @photo"),
        (DEFINITION.replace("strategy", "stragety").replace("depends_on", "depend_on"), "is no workflow"),
        (DEFINITION.replace("@studio.png", "@missing.png"), "there is no such file"),
    ],
)
def test_a_workflow_that_does_not_hold_is_refused_at_start(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match="ATELIER_CAPTURE_WORKFLOW") as refused:
        read_run_file(definition(tmp_path, text), "capture", "")
    assert told in str(refused.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_run_file(tmp_path / "none.yaml", "capture", "")


async def test_capture_is_not_started_with_a_workflow_that_does_not_hold(
    start_studio: StartStudio, tmp_path: Path
) -> None:
    with pytest.raises(MeshError, match=r"none\.yaml cannot be read: No such file") as refused:
        await start_studio(capture_workflow=tmp_path / "none.yaml")
    assert refused.value.reason == "CAPTURE_WORKFLOW"
