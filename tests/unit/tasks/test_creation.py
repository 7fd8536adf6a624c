"""What of a request becomes part of the task."""

from typing import Any

import pytest
from atelier.tasks.v1 import task_pb2

from meshkit.catalog import TASK_TYPES
from services.tasks.api.creation import copy_shared, shared_fields

CreateTask: Any = task_pb2.CreateTask
Task: Any = task_pb2.Task


def copied(task_type: str, **members: Any) -> Any:
    detail = TASK_TYPES[task_type].detail
    shown = Task()
    copy_shared(getattr(CreateTask(**{detail: members}), detail), getattr(shown, detail), shared_fields(detail))
    return getattr(shown, detail)


def test_what_is_set_is_copied_empty_values_included_and_nothing_else() -> None:
    shown = copied("LLM_INTERACTION", system_prompt="", prompt="name the colour")
    assert {one.name for one, _ in shown.ListFields()} == {"prompt", "system_prompt"}


def test_structures_are_copied() -> None:
    shown = copied("EXPERIMENTAL_FAL", fal_app_id="fal-ai/flux", fal_parameters={"steps": 4})
    assert shown.fal_parameters["steps"] == 4


@pytest.mark.parametrize(
    ("task_type", "members"),
    [
        ("GENERATION", {"reference_image_data": "aGk="}),
        ("EDITING", {"base_image": "aGk=", "reference_images": ["aGk=", "aGk="], "reference_image_data": "aGk="}),
        ("LLM_INTERACTION", {"input_images": ["aGk="]}),
        ("BACKGROUND_REMOVE", {"input_image_paths": ["aGk="]}),
    ],
)
def test_files_are_never_copied_one_by_one_or_in_lists(task_type: str, members: dict[str, Any]) -> None:
    assert not copied(task_type, **members).ListFields()


def test_no_source_of_any_input_is_shared() -> None:
    for spec in TASK_TYPES.values():
        assert not shared_fields(spec.detail) & {one.field for image in spec.inputs for one in image.sources}


def test_workflow_that_a_caller_names_is_not_copied() -> None:
    assert not copied("EDITING", workflow_id="5f0c9a2e-0000-4000-8000-000000000000").ListFields()
