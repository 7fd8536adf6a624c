"""What of a request becomes part of the task."""

from atelier.tasks.v1 import task_pb2

from services.tasks.api.creation import copy_shared, shared_fields


def test_what_is_set_is_copied_empty_values_included_and_nothing_else() -> None:
    asked = task_pb2.CreateTask()
    asked.llm_interaction.input_images.extend(["a", "b"])
    asked.llm_interaction.system_prompt = ""
    told = task_pb2.Task()
    copy_shared(asked.llm_interaction, told.llm_interaction, shared_fields("llm_interaction"))
    assert {one.name for one, _ in told.llm_interaction.ListFields()} == {"input_images", "system_prompt"}
    assert list(told.llm_interaction.input_images) == ["a", "b"]


def test_what_callers_send_for_workers_alone_is_not_shown() -> None:
    assert "reference_image_data" not in shared_fields("generation")
    asked = task_pb2.CreateTask()
    asked.generation.reference_image_data = "aGk="
    told = task_pb2.Task()
    copy_shared(asked.generation, told.generation, shared_fields("generation"))
    assert not told.generation.ListFields()
