"""Files inside of a workflow's steps leave the request before it is forwarded, as those of a task do."""

from typing import Any

from atelier.training.v1 import training_pb2
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.json_format import MessageToDict, ParseDict

from meshkit.freeform import FreeFormLimits
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding

LARGE = "A" * 100


def decoded(*steps: dict[str, Any], **more: Any) -> tuple[workflow_pb2.CreateWorkflow, Decoding]:
    workflow = workflow_pb2.CreateWorkflow()
    decoding = Decoding(held_threshold=50, free_form=FreeFormLimits(max_bytes=150), **more)
    Codecs().of(workflow_pb2.CreateWorkflow.DESCRIPTOR).decode(
        workflow, {"name": "looks", "steps": list(steps)}, ("body",), decoding
    )
    return workflow, decoding


def test_files_of_a_step_that_trains_are_handed_over() -> None:
    step = {"id": "learn", "job_kind": "TRAINING", "config": {"source_images": ["a.png", LARGE], "trigger_word": "x"}}
    workflow, decoding = decoded(step)
    assert not decoding.violations
    [upload] = decoding.uploads
    assert upload.loc == ("body", "steps", 0, "config", "source_images", 1)
    upload.replace("staging:1")
    trained = ParseDict(MessageToDict(workflow.steps[0].config), training_pb2.CreateTraining())
    assert list(trained.source_images) == ["a.png", "staging:1"]


def edit(**config: Any) -> dict[str, Any]:
    return {"id": "edit", "task_type": "EDITING", "config": config}


def test_each_file_is_handed_over_and_its_staged_name_put_in_its_place() -> None:
    files = {"base_image": LARGE, "reference_images": ["b.png", LARGE, LARGE]}
    workflow, decoding = decoded(edit(prompt="x", **files), edit(prompt="y", base_image="a.png"))
    assert not decoding.violations
    steps = ("body", "steps", 0, "config")
    assert {one.loc: one.data for one in decoding.uploads} == {
        (*steps, "base_image"): LARGE,
        (*steps, "reference_images", 1): LARGE,
        (*steps, "reference_images", 2): LARGE,
    }
    for one in decoding.uploads:
        one.replace(f"staging:{one.loc[-1]}")
    assert MessageToDict(workflow.steps[0].config) == {
        "prompt": "x",
        "base_image": "staging:base_image",
        "reference_images": ["b.png", "staging:1", "staging:2"],
    }
    assert workflow.steps[1].config["base_image"] == "a.png"


def test_what_is_no_file_stays_and_counts() -> None:
    address = f"https://example.com/{LARGE}"
    for config in ({"base_image": address}, {"base_image": "a.png", "prompt": LARGE}, {"base_image": {"x": LARGE}}):
        workflow, decoding = decoded(edit(**config))
        assert not decoding.uploads
        assert MessageToDict(workflow.steps[0].config) == config
    _, decoding = decoded(edit(base_image=LARGE, prompt=LARGE * 2))
    assert [(one.loc, one.type) for one in decoding.violations] == [(("body", "steps", 0, "config"), "too_large")]
    # A member of that name in a task of another type is no file.
    _, decoding = decoded({"id": "a", "task_type": "LLM_INTERACTION", "config": {"base_image": LARGE}})
    assert not decoding.uploads
