"""The photos of `examples/capture`, judged by the rules that ship."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2
from PIL import Image

from examples.capture.shoot import shoot
from modelkit.photos import examine
from modelkit.vision import Vision
from services.inference.tasktypes.photo_detection import _findings
from services.monitoring.capture.analysis.domain import BatchFacts, PhotoFacts
from services.monitoring.capture.analysis.findings import read_photo
from services.monitoring.capture.analysis.rules import read_rules
from services.monitoring.capture.detection.domain import outcome_of
from services.monitoring.capture.photos.domain import shown

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BatchFacts]:
    """What is found on the photos of each camera."""
    root, vision = tmp_path_factory.mktemp("cameras"), Vision(1)
    shoot(root, 0)
    return {
        folder.name: BatchFacts(folder.name, [facts(file, vision) for file in sorted(folder.iterdir())])
        for folder in root.iterdir()
    }


def facts(file: Path, vision: Vision) -> PhotoFacts:
    task = task_pb2.Task(status=enums_pb2.TASK_STATUS_COMPLETED)
    with Image.open(file) as photo:
        task.photo_detection.findings.CopyFrom(_findings(examine(photo.convert("RGB"), vision)))
    outcome = outcome_of(task)
    assert outcome is not None
    confidence = max((one.confidence for one in outcome.detections if one.object_type == "person"), default=None)
    faces = sum(one.object_type == "face" for one in outcome.detections)
    path = shown(bytes(file))
    return read_photo(path, NOW, findings=outcome.findings, error=None, faces=faces, confidence=confidence)


def test_the_studio_is_told_to_look_at_the_bad_series_again(batches: dict[str, BatchFacts]) -> None:
    rules = read_rules("studio")
    risks = {camera: rules.judge(found) for camera, found in batches.items()}
    alerts = {camera: [one.rule for one in rules.alerts(found, risks[camera])] for camera, found in batches.items()}
    assert alerts == {"studio-a": ["shoot_again"], "studio-b": [], "gate": []}
    assert {one.rule: one.photos for one in risks["studio-a"].counts} == {
        "garment_cut": 3,
        "blurred": 1,
        "wrong_exposure": 2,
    }
    assert (risks["studio-a"].score, risks["studio-a"].level.value) == (65, "high")


def test_a_guard_is_told_of_people(batches: dict[str, BatchFacts]) -> None:
    rules = read_rules("guard")
    alerts = {
        camera: [one.rule for one in rules.alerts(found, rules.judge(found))] for camera, found in batches.items()
    }
    assert alerts == {"studio-a": ["somebody_there"], "studio-b": ["somebody_there"], "gate": []}
