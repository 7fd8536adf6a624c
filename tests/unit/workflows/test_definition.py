from typing import Any

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format

from meshkit.errors import MeshError
from meshkit.freeform import FreeFormLimits
from services.workflows.definition import ServedCatalog, check

SERVED = ServedCatalog.of(
    ["GENERATION", "IMAGE_ADJUSTER", "NOOP"], {"LOCAL": ["SEED", "TEXT_TO_IMAGE"]}, ["inference", "training"]
)
GENERATE = {"id": "generate", "task_type": "TASK_TYPE_GENERATION", "config": {"prompt": "a red dress", "width": 64}}
ADJUST = {
    "id": "adjust",
    "task_type": "TASK_TYPE_IMAGE_ADJUSTER",
    "config": {"aspect_ratio": 1.5},
    "depends_on": ["generate"],
    "input_mappings": [{"from_step": "generate", "from_field": "result_image_path", "to_field": "input_image"}],
}


def definition(*steps: dict[str, Any], **config: Any) -> workflow_pb2.CreateWorkflow:
    message = {"name": "n", "origin_instance": "tests", "steps": list(steps), "config": config}
    return json_format.ParseDict(message, workflow_pb2.CreateWorkflow())


def faults(*steps: dict[str, Any], **config: Any) -> dict[str, str]:
    with pytest.raises(MeshError) as raised:
        check(definition(*steps, **config), SERVED)
    return {one.path: one.message for one in raised.value.violations}


def noop(name: str, *needs: str, **config: Any) -> dict[str, Any]:
    return {"id": name, "task_type": "TASK_TYPE_NOOP", "depends_on": list(needs), "config": config}


def mapped(**mapping: str) -> dict[str, Any]:
    return {**ADJUST, "input_mappings": [{**ADJUST["input_mappings"][0], **mapping}]}  # type: ignore[index]  # a literal above


def test_the_documented_example_with_an_adjuster_in_place_of_refine_holds() -> None:
    check(definition(GENERATE, ADJUST), SERVED)


def test_a_type_that_is_not_served_is_named() -> None:
    found = faults(
        {"id": "r", "task_type": "TASK_TYPE_REFINE", "config": {"base_image_url": "a.png", "upscale_factor": 2}}
    )
    assert found == {
        "workflow.steps[0].task_type": "Tasks of type REFINE are not served; this installation serves GENERATION, "
        "IMAGE_ADJUSTER"
    }


@pytest.mark.parametrize(
    ("steps", "path", "text"),
    [
        ([noop("a"), noop("a")], "workflow.steps[1].id", "defined already"),
        ([noop("a", "x")], "workflow.steps[0].depends_on[0]", "no step 'x'"),
        ([noop("b"), noop("a", "b", "a")], "workflow.steps[1].depends_on[1]", "depends on itself"),
        ([noop("a", "c"), noop("b", "a"), noop("c", "b")], "workflow.steps[0].depends_on[0]", "a -> c -> b -> a"),
    ],
)
def test_a_broken_graph_is_refused_where_it_breaks(steps: list[dict[str, Any]], path: str, text: str) -> None:
    found = faults(*steps)
    assert list(found) == [path]
    assert text in found[path]


@pytest.mark.parametrize(
    ("mapping", "member", "text"),
    [
        ({"from_step": "nobody"}, "from_step", "no step"),
        ({"from_step": "adjust"}, "from_step", "does not depend on"),
        ({"from_field": "picture"}, "from_field", "yields no 'picture'"),
        ({"to_field": "picture"}, "to_field", "takes no 'picture'"),
        ({"from_field": "width"}, "to_field", "takes a string, width gives a integer"),
        ({"transform": "rotate"}, "transform", "unknown transform"),
        ({"transform": "scale(2)"}, "transform", "needs a number"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused(mapping: dict[str, str], member: str, text: str) -> None:
    found = faults(GENERATE, mapped(**mapping))
    assert text in found[f"workflow.steps[1].input_mappings[0].{member}"]


def test_a_mapping_may_come_from_any_ancestor_and_be_transformed() -> None:
    last = noop("last", "adjust")
    last["input_mappings"] = [
        {"from_step": "generate", "from_field": "width", "to_field": "steps", "transform": "scale(0.5)"},
        {"from_step": "generate", "from_field": "width", "to_field": "payload", "transform": 'format("{} px")'},
    ]
    check(definition(GENERATE, ADJUST, last), SERVED)


def test_a_mapping_from_a_sibling_is_refused() -> None:
    sibling = {**ADJUST, "depends_on": []}
    assert "workflow.steps[1].input_mappings[0].from_step" in faults(GENERATE, sibling)


@pytest.mark.parametrize(
    ("config", "member"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "width": 3}, "width"),
        ({"prompt": "x", "width": "wide"}, "width"),
        ({"prompt": "x", "width": 64.5}, "width"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x", "queue_name": "nowhere"}, "queue_name"),
    ],
)
def test_a_config_that_the_task_does_not_take_is_refused_at_its_member(config: dict[str, Any], member: str) -> None:
    assert f"workflow.steps[0].config.{member}" in faults({**GENERATE, "config": config})


def test_what_is_mapped_is_not_missed() -> None:
    found = faults({**ADJUST, "depends_on": [], "input_mappings": []})
    assert found.keys() == {"workflow.steps[0].config.input_image"}


def test_the_shared_config_supplies_what_steps_leave_out() -> None:
    check(definition({**GENERATE, "config": {}}, ADJUST, prompt="shared", on_failure="cancel"), SERVED)


def test_an_unknown_failure_policy_is_refused() -> None:
    assert "workflow.config.on_failure" in faults(GENERATE, on_failure="shrug")


def faults_of(served: ServedCatalog, *steps: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(MeshError) as raised:
        check(definition(*steps), served)
    return {one.path: one.type for one in raised.value.violations}


def test_a_provider_must_execute_the_type_of_the_step() -> None:
    served = ServedCatalog.of(
        ["LLM_INTERACTION", "EXPERIMENTAL_FAL"], {"LOCAL": [], "FAL_STANDARD": []}, ["fal", "inference"]
    )
    config = {"provider_type": "FAL_STANDARD", "prompt": "?"}
    ask = {"id": "ask", "task_type": "TASK_TYPE_LLM_INTERACTION", "config": config}
    assert faults_of(served, ask) == {"workflow.steps[0].config.provider_type": "provider_type_unfit"}
    other = {**ask, "config": {"prompt": "?"}, "fallback_provider_type": "PROVIDER_TYPE_FAL_STANDARD"}
    assert faults_of(served, other) == {"workflow.steps[0].fallback_provider_type": "provider_type_unfit"}
    # Without a provider the type's default counts: fal for an application at fal, LOCAL else.
    check(definition({**ask, "config": {"prompt": "?"}}), served)
    app = {"id": "app", "task_type": "TASK_TYPE_EXPERIMENTAL_FAL", "config": {"fal_app_id": "fal-ai/flux"}}
    check(definition(app), served)


def test_files_stand_in_the_config_of_a_step_and_not_in_that_of_all() -> None:
    served = ServedCatalog.of(["EDITING"], {"LOCAL": []}, ["inference"])
    config = {"prompt": "x", "base_image": "a.png", "reference_images": ["b.png", "data:image/png;base64,aGk="]}
    step = {"id": "edit", "task_type": "TASK_TYPE_EDITING", "config": config}
    check(definition(step), served)
    step["config"] = {"prompt": "x"}
    several = {"base_image": "a.png", "reference_images": ["A" * 2000]}
    for shared in ({"base_image": "data:image/png;base64,aGk="}, several):
        workflow = definition(step)
        workflow.config.update(shared)
        with pytest.raises(MeshError) as raised:
            check(workflow, served)
        [found] = raised.value.violations
        assert (found.path, found.type) == (f"workflow.config.{list(shared)[-1]}", "inline_file")


def test_providers_and_capabilities_are_checked_as_for_tasks() -> None:
    found = faults({**GENERATE, "active_provider_capabilities": ["SEED", "VIDEO"]})
    assert "VIDEO" in found["workflow.steps[0].active_provider_capabilities[1]"]
    assert "workflow.steps[0].provider_config" in faults({**GENERATE, "provider_config": {"fashn_standard": {}}})
    other = {**GENERATE, "fallback_provider_type": "PROVIDER_TYPE_VERTEX"}
    assert "workflow.steps[0].fallback_provider_type" in faults(other)
    assert "workflow.steps[0].fallback_provider_type" in faults(
        {**GENERATE, "fallback_provider_capabilities": ["SEED"]}
    )


@pytest.mark.parametrize("member", ["provider_config", "fallback_provider_config"])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"fal_standard": {"fal_app_id": "a/b", "fal_request_id": "1"}}, "fal_standard.fal_request_id"),
        ({"fashn_standard": {"fashn_task_id": "1"}}, "fashn_standard.fashn_task_id"),
    ],
)
def test_a_request_at_a_provider_is_never_a_steps_to_name(member: str, settings: dict[str, Any], name: str) -> None:
    served = ServedCatalog.of(["EDITING"], {"LOCAL": [], "FAL_STANDARD": [], "FASHN_STANDARD": []}, ["inference"])
    step = {"id": "edit", "task_type": "TASK_TYPE_EDITING", "config": {"prompt": "x", "base_image": "a.png"}}
    if member == "fallback_provider_config":
        step["fallback_provider_type"] = f"PROVIDER_TYPE_{next(iter(settings)).upper()}"
    assert faults_of(served, {**step, member: settings}) == {f"workflow.steps[0].{member}.{name}": "read_only"}


@pytest.mark.parametrize(
    ("when", "member"),
    [
        ({"from_step": "nobody"}, "from_step"),
        ({"from_step": "b"}, "from_step"),
        ({"from_field": "picture"}, "from_field"),
        ({"operator": "equals"}, "value"),
        ({"value": 3}, "value"),
        ({"operator": "less", "value": "many"}, "value"),
        ({"operator": "greater", "from_field": "payload", "value": 3}, "value"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_refused(when: dict[str, Any], member: str) -> None:
    step = {**noop("b", "a"), "when": {"from_step": "a", "from_field": "steps", "operator": "exists", **when}}
    assert f"workflow.steps[1].when.{member}" in faults(noop("a"), step)


def test_a_condition_on_an_ancestor_holds() -> None:
    when = {"from_step": "a", "from_field": "steps", "operator": "greater", "value": 3}
    check(definition(noop("a"), noop("b", "a"), {**noop("c", "b"), "when": when}), SERVED)


ITEM = {"from_step": "$item", "from_field": "value", "to_field": "payload"}


def each(name: str, *needs: str, mapping: dict[str, str] = ITEM, **listed: Any) -> dict[str, Any]:
    return {**noop(name, *needs), "for_each": listed, "input_mappings": [mapping]}


@pytest.mark.parametrize(
    "steps",
    [
        [each("a", items=["x", "y"])],
        [each("a", items=[])],
        [each("a", items=[{"text": "x"}, {"text": "y", "more": 1}], mapping={**ITEM, "from_field": "value.text"})],
        [each("a", items=[1, 2.5], mapping={**ITEM, "transform": 'format("{}")'})],
        [each("a", items=["x"], mapping={**ITEM, "from_field": "index", "to_field": "steps"})],
        [noop("a"), each("b", "a", from_step="a", from_field="result_path", transform="to_list")],
        [each("a", items=["x"]), each("b", "a", from_step="a", from_field="result_path")],
        [
            each("a", items=["x"]),
            each("b", "a", from_step="a", from_field="items", mapping={**ITEM, "from_field": "value.payload"}),
        ],
        [each("a", items=["x"]), {**noop("b", "a"), "when": {"from_step": "a", "from_field": "count"}}],
        [
            each("a", items=["x"]),
            {
                **noop("b", "a"),
                "input_mappings": [{**ITEM, "from_step": "a", "from_field": "payload", "transform": "first"}],
            },
        ],
    ],
)
def test_a_list_of_items_may_be_given_or_read_and_its_results_read_as_lists(steps: list[dict[str, Any]]) -> None:
    check(definition(*steps), SERVED)


AT = "workflow.steps[0].for_each"
MAPPING = "workflow.steps[0].input_mappings[0]"


@pytest.mark.parametrize(
    ("steps", "path", "text"),
    [
        ([each("a", items=["x"] * 201)], f"{AT}.items", "at most 200 items, not 201"),
        ([each(f"s{at}", items=["x"] * 200) for at in range(6)], "workflow.steps", "1200 items in all"),
        ([each("a", items=["x", 1])], f"{AT}.items[1]", "a integer, and a string in an item before"),
        ([each("a", items=["x", None])], f"{AT}.items[1]", "a text, a number"),
        ([each("a", items=[["x"]])], f"{AT}.items[0]", "a text, a number"),
        ([each("a", items=["x" * 9000])], f"{AT}.items[0]", "8192 bytes"),
        ([each("a", items=["x"], from_step="a")], f"{AT}.from_step", "given in items already"),
        ([each("a")], f"{AT}.from_step", "Field required"),
        ([each("a", from_step="b")], f"{AT}.from_field", "Field required"),
        ([each("a", from_step="b", from_field="result_path")], f"{AT}.from_step", "no step 'b'"),
        ([each("a", from_step="b", from_field="result_path"), noop("b")], f"{AT}.from_step", "does not depend on 'b'"),
        ([each("a", "b", from_step="b", from_field="x"), noop("b")], f"{AT}.from_field", "yields no 'x'"),
        ([each("a", "b", from_step="b", from_field="payload"), noop("b")], f"{AT}.from_field", "gives a string"),
        (
            [each("a", "b", from_step="b", from_field="payload", transform="last"), noop("b")],
            f"{AT}.transform",
            "unknown transform",
        ),
        ([{**noop("a"), "input_mappings": [ITEM]}], f"{MAPPING}.from_step", "Only a step with for_each"),
        ([each("a", items=["x"], mapping={**ITEM, "from_field": "name"})], f"{MAPPING}.from_field", "has no 'name'"),
        ([each("a", items=[{"n": 1}])], f"{MAPPING}.to_field", "takes a string, value gives a object"),
        ([each("a", items=[7])], f"{MAPPING}.to_field", "takes a string, value gives a integer"),
        (
            [
                {**noop("a", "b"), "input_mappings": [{**ITEM, "from_step": "b", "from_field": "payload"}]},
                each("b", items=["x"]),
            ],
            f"{MAPPING}.to_field",
            "gives a list of string",
        ),
    ],
)
def test_what_is_wrong_with_a_list_of_items_is_told_where_it_is(
    steps: list[dict[str, Any]], path: str, text: str
) -> None:
    found = faults(*steps)
    assert text in found[path], found


@pytest.mark.parametrize("seed", ["--5", "---1", "9" * 5000, "5.0", "٣", "", "9" * 19, "0x10"])
def test_a_malformed_whole_number_as_text_is_refused_at_its_member(seed: str) -> None:
    found = faults({**GENERATE, "config": {"prompt": "x", "seed": seed}})
    assert list(found) == ["workflow.steps[0].config.seed"]


def test_a_whole_number_beyond_a_double_is_taken_as_text() -> None:
    check(definition({**GENERATE, "config": {"prompt": "x", "seed": str(2**63 - 1)}}), SERVED)


def test_the_config_that_a_task_gets_of_its_step_and_its_workflow_is_measured_as_one() -> None:
    with pytest.raises(MeshError) as raised:
        check(definition(noop("a", note="x" * 600), other="y" * 600), SERVED, FreeFormLimits(max_bytes=1000))
    assert [one.path for one in raised.value.violations] == ["workflow.steps[0].config.config"]
