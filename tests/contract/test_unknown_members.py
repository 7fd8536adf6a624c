"""Members of a workflow's step that are almost those of its task."""

from typing import Any

import pytest
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


def test_a_config_that_is_no_object_is_one_violation() -> None:
    assert [one.loc for one in decoded("text", strict=True).violations] == [("body", "steps", 0, "config")]


def test_a_step_is_held_to_its_members() -> None:
    [found] = decoded({}, strict=True, depends_onn=[]).violations
    assert found.msg.endswith("did you mean depends_on?")
