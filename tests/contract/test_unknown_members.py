"""Members of a workflow's step that are almost those of its task."""

from typing import Any

import pytest
from atelier.tasks.v1 import task_pb2
from atelier.training.v1 import training_pb2
from atelier.workflows.v1 import workflow_pb2

from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding


def decoded(config: Any, *, strict: bool, task_type: Any = "GENERATION", **step: Any) -> Decoding:
    workflow = {"name": "looks", "steps": [{"id": "a", "task_type": task_type, "config": config, **step}]}
    decoding = Decoding(strict=strict)
    Codecs().of(workflow_pb2.CreateWorkflow.DESCRIPTOR).decode(
        workflow_pb2.CreateWorkflow(), workflow, ("body",), decoding
    )
    return decoding


def test_a_slip_of_the_pen_in_a_config_is_refused_where_strict() -> None:
    [found] = decoded({"prompt": "a red dress", "widht": 512}, strict=True).violations
    assert found.loc == ("body", "steps", 0, "config", "widht")
    assert found.msg == "Extra inputs are not permitted: did you mean width?"


def test_a_slip_of_the_pen_in_a_config_is_named_where_not_strict() -> None:
    decoding = decoded({"prompt": "a red dress", "widht": 512}, strict=False)
    assert not decoding.violations
    assert decoding.unknown.warning().endswith('steps[0].config.widht (did you mean width?)"')


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"prompt": "a red dress", "width": 512, "priority": 2, "queue_name": "inference", "seed": 7},
        {"prompt": "a red dress", "batch": "spring", "shop": {"widht": 1}, "config": {"widht": 1}},
        {},
        None,
    ],
)
def test_a_config_may_have_members_of_its_own(config: Any, strict: bool) -> None:
    decoding = decoded(config, strict=strict)
    assert not decoding.violations
    assert not decoding.unknown.warning()


@pytest.mark.parametrize("task_type", [None, "NONSENSE", 7, ["GENERATION"]])
def test_a_config_of_no_type_is_judged_by_what_all_tasks_have(task_type: Any) -> None:
    decoding = decoded({"widht": 1, "prioriti": 1}, strict=True, task_type=task_type)
    assert ("body", "steps", 0, "config", "prioriti") in {one.loc for one in decoding.violations}


def test_a_config_of_a_step_that_trains_is_judged_by_what_trainings_have() -> None:
    members = dict.fromkeys(training_pb2.CreateTraining.DESCRIPTOR.fields_by_name, None)
    decoding = decoded({**members, "trigger_wrod": "x"}, strict=True, task_type=None, job_kind="TRAINING")
    [found] = decoding.violations
    assert found.loc == ("body", "steps", 0, "config", "trigger_wrod")
    assert found.msg.endswith("did you mean trigger_word?")


def test_a_config_that_is_no_object_is_one_violation() -> None:
    assert [one.loc for one in decoded("text", strict=True).violations] == [("body", "steps", 0, "config")]


def test_a_step_is_held_to_its_members() -> None:
    [found] = decoded({}, strict=True, depends_onn=[]).violations
    assert found.msg.endswith("did you mean depends_on?")


def task(config: Any, *, strict: bool, task_type: str) -> Decoding:
    decoding = Decoding(strict=strict)
    body = {"task_type": task_type, "origin_instance": "shop", "config": config}
    Codecs().of(task_pb2.CreateTask.DESCRIPTOR).decode(task_pb2.CreateTask(), body, ("body",), decoding)
    return decoding


@pytest.mark.parametrize(
    ("task_type", "member", "meant"),
    [
        ("VIDEO_GENERATION", "stesp", "steps"),
        ("EDITING", "mask_imge", "mask_image"),
        ("LLM_INTERACTION", "temprature", "temperature"),
        ("BACKGROUND_REMOVE", "metdata", "metadata"),
    ],
)
def test_a_slip_of_the_pen_in_what_steers_a_task_is_told(task_type: str, member: str, meant: str) -> None:
    [found] = task({member: 1}, strict=True, task_type=task_type).violations
    assert found.loc == ("body", "config", member)
    assert found.msg.endswith(f"did you mean {meant}?")
    lenient = task({member: 1}, strict=False, task_type=task_type)
    assert not lenient.violations
    assert lenient.unknown.warning().endswith(f'config.{member} (did you mean {meant}?)"')


def test_the_rest_of_a_tasks_config_is_the_callers_own() -> None:
    for config in ({"season": "spring", "fps_of_camera": 25, "steps": 4}, {}, None):
        decoding = task(config, strict=True, task_type="GENERATION")
        assert not decoding.violations
        assert not decoding.unknown.warning()


def updated(config: Any, *, strict: bool) -> Decoding:
    decoding = Decoding(strict=strict)
    Codecs().of(task_pb2.TaskUpdate.DESCRIPTOR).decode(
        task_pb2.TaskUpdate(), {"priority": 2, "config": config}, ("body",), decoding
    )
    return decoding


@pytest.mark.parametrize(
    ("member", "meant"), [("stesp", "steps"), ("mask_imge", "mask_image"), ("temprature", "temperature")]
)
def test_a_slip_of_the_pen_in_an_update_is_told_whatever_the_tasks_type(member: str, meant: str) -> None:
    """An update does not name its task's type, so that a member of any type's may be meant."""
    [found] = updated({member: 1}, strict=True).violations
    assert found.loc == ("body", "config", member)
    assert found.msg.endswith(f"did you mean {meant}?")
    assert updated({member: 1}, strict=False).unknown.warning().endswith(f'config.{member} (did you mean {meant}?)"')


def test_the_rest_of_an_updated_config_is_the_callers_own() -> None:
    for config in ({"season": "spring", "steps": 4, "temperature": 0.5, "mask_image": "a.png"}, {}, None):
        decoding = updated(config, strict=True)
        assert not decoding.violations
        assert not decoding.unknown.warning()
