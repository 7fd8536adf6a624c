from dataclasses import replace
from typing import Any

import pytest
from atelier.tasks.v1 import task_pb2
from atelier.workflows.v1.workflow_pb2 import StepCondition
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from services.workflows.building import BuildError, task_of
from services.workflows.condition import fault_of, holds
from services.workflows.domain import StepRecord, StepState
from services.workflows.fields import plain_struct, result_of
from services.workflows.items import collected, items_of, value_of
from services.workflows.mapping import INTEGER
from tests.unit.workflows.rows import for_each, step, workflow
from tests.unit.workflows.test_definition import ADJUST, GENERATE, definition

BIG = 2**62 + 1


def generated(**fields: object) -> StepRecord:
    task = task_pb2.Task(generation=fields)  # type: ignore[arg-type]  # names of the message
    message = definition(GENERATE).steps[0]
    return step(
        "generate",
        task_type="GENERATION",
        state=StepState.COMPLETED,
        definition=message.SerializeToString(),
        result=result_of(task, "GENERATION").SerializeToString(),
    )


def adjust(**mapping: str) -> StepRecord:
    message = definition(GENERATE, ADJUST).steps[1]
    for name, value in mapping.items():
        setattr(message.input_mappings[0], name, value)
    return step("adjust", ["generate"], 1, task_type="IMAGE_ADJUSTER", definition=message.SerializeToString())


def struct(**values: object) -> Struct:
    return json_format.ParseDict(values, Struct())


def shared(**values: object) -> bytes:
    return struct(**values).SerializeToString()


def test_a_result_becomes_the_next_steps_input() -> None:
    before, after = generated(result_image_path="generations/x/1/a.png"), adjust()
    task = task_of(workflow(origin_zone="eu", origin_reference="42"), after, (before, after))
    assert task.image_adjuster.input_image == "generations/x/1/a.png"
    assert task.image_adjuster.aspect_ratio == 1.5
    assert (task.origin_instance, task.origin_tenant_id, task.origin_zone, task.origin_reference) == (
        "tests", "acme", "eu", "42",
    )  # fmt: skip


def test_a_missing_result_leaves_its_field_unset() -> None:
    before, after = generated(), adjust()
    assert not task_of(workflow(), after, (before, after)).image_adjuster.HasField("input_image")


def test_a_default_stands_in_for_a_missing_result() -> None:
    before, after = generated(), adjust(transform='default("uploads/a.png")')
    assert task_of(workflow(), after, (before, after)).image_adjuster.input_image == "uploads/a.png"


def test_an_element_that_a_result_lacks_fails_the_step() -> None:
    before = generated(result_image_path="a.png")
    after = adjust(transform="to_list | index(3)")
    with pytest.raises(BuildError, match=r"generate\.result_image_path: index\(3\)"):
        task_of(workflow(), after, (before, after))


def test_a_step_wins_over_the_shared_config_and_a_mapping_over_both() -> None:
    before, after = generated(result_image_path="mapped.png"), adjust()
    row = workflow(config=shared(aspect_ratio=9.0, input_image="shared.png", mode="pad", model="other", prompt="x"))
    task = task_of(row, after, (before, after))
    assert task.image_adjuster.aspect_ratio == 1.5
    assert task.image_adjuster.input_image == "mapped.png"
    assert task.image_adjuster.mode == "pad"
    # What no type has is the task's own free storage; what another type has is none of its business.
    assert plain_struct(task.config.SerializeToString()) == {"model": "other"}


def test_a_seed_beyond_what_json_holds_survives_the_way() -> None:
    assert plain_struct(generated(seed=BIG).result or b"")["seed"] == str(BIG)


def item_of(items: list[Any], place: int, **mapping: str) -> tuple[StepRecord, StepRecord]:
    """A step with items, and one of them."""
    message = definition({**GENERATE, "for_each": {"items": items}}).steps[0]
    message.input_mappings.add(from_step="$item", **mapping)
    above = step("generate", task_type="GENERATION", definition=message.SerializeToString(), for_each=for_each(items))
    value = json_format.ParseDict(items[place], Value()).SerializeToString()
    return above, step(f"generate[{place}]", task_type="GENERATION", parent="generate", item=value, item_index=place)


@pytest.mark.parametrize(
    ("items", "mapping", "wanted"),
    [
        (
            ["red", "blue"],
            {"from_field": "value", "to_field": "prompt", "transform": 'format("a {} hat")'},
            "a blue hat",
        ),
        ([{"name": "red"}, {"name": "blue"}], {"from_field": "value.name", "to_field": "prompt"}, "blue"),
        ([{"name": "red"}, {}], {"from_field": "value.name", "to_field": "prompt"}, "a red dress"),
        ([3, 4], {"from_field": "index", "to_field": "seed"}, 1),
        ([3, 4], {"from_field": "value", "to_field": "seed"}, 4),
    ],
)
def test_an_item_becomes_the_input_of_its_task(items: list[Any], mapping: dict[str, str], wanted: object) -> None:
    above, item = item_of(items, 1, **mapping)
    task = task_of(workflow(), item, (above, item))
    assert getattr(task.generation, mapping["to_field"]) == wanted
    assert task.generation.width == 64, "what its step says holds for each item"


def collecting(*paths: str | None) -> StepRecord:
    done = [step(f"generate[{at}]", parent="generate", item=b"", item_index=at) for at in range(len(paths))]
    results = [Struct() if path is None else struct(result_image_path=path) for path in paths]
    items = [replace(one, result=result.SerializeToString()) for one, result in zip(done, results, strict=True)]
    return step("generate", task_type="GENERATION", for_each=for_each([]), result=collected(items))


def test_the_results_of_items_are_read_as_one_list() -> None:
    before, after = collecting("a.png", "b.png", "c.png"), adjust(transform="index(-2)")
    assert task_of(workflow(), after, (before, after)).image_adjuster.input_image == "b.png"
    assert value_of(before, "count") == 3


def test_an_item_without_the_field_fails_the_step_that_reads_it() -> None:
    before, after = collecting("a.png", None), adjust(transform="first")
    with pytest.raises(BuildError, match="item 1 has none"):
        task_of(workflow(), after, (before, after))


def test_subtasks_tell_the_webhook_only_where_they_shall() -> None:
    one = generated()
    quiet = workflow(webhook_url="https://example.com/hook")
    assert not task_of(quiet, one, (one,)).HasField("webhook_url")
    loud = workflow(webhook_url="https://example.com/hook", suppress_subtask_events=False)
    assert task_of(loud, one, (one,)).webhook_url == "https://example.com/hook"


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [
        ({"from_field": "value", "to_field": "seed"}, BIG),
        ({"from_field": "value", "to_field": "prompt", "transform": 'format("seed {}")'}, f"seed {BIG}"),
        ({"from_field": "value", "to_field": "seed", "transform": "scale(2) | scale(0)"}, 0),
    ],
)
def test_an_item_beyond_what_a_double_holds_reaches_its_task_unchanged(mapping: dict[str, str], wanted: object) -> None:
    source = generated(seed=BIG)
    message = definition(GENERATE).steps[0]
    message.for_each.from_step, message.for_each.from_field, message.for_each.transform = "generate", "seed", "to_list"
    message.input_mappings.add(from_step="$item", **mapping)
    above = step("each", ["generate"], definition=message.SerializeToString(), task_type="GENERATION",
                 for_each=message.for_each.SerializeToString())  # fmt: skip
    (value,) = items_of(above, {"generate": source, "each": above})
    item = step("each[0]", task_type="GENERATION", parent="each", item=value, item_index=0)
    task = task_of(workflow(), item, (source, above, item))
    assert getattr(task.generation, mapping["to_field"]) == wanted


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        ("equals", str(BIG), True),
        ("equals", str(BIG - 1), False),
        ("less", str(BIG + 1), True),
        ("greater", str(BIG - 1), True),
        ("greater", str(BIG), False),
        ("greater", 2**53, True),
    ],
)
def test_a_condition_compares_whole_numbers_digit_by_digit(operator: str, value: str | int, wanted: bool) -> None:
    condition = StepCondition(from_step="generate", from_field="seed", operator=operator)
    if isinstance(value, str):
        condition.value.string_value = value
    else:
        condition.value.number_value = value
    assert fault_of(condition, INTEGER) == ""
    assert holds(condition.SerializeToString(), generated(seed=BIG)) is wanted


def test_a_condition_on_a_whole_number_takes_no_other_text() -> None:
    condition = StepCondition(from_step="generate", from_field="seed", operator="less")
    condition.value.string_value = "many"
    assert fault_of(condition, INTEGER) == "less takes a number"
