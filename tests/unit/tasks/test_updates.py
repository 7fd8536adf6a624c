from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2

from meshkit.catalog import DECLARED, TASK_TYPES, Change
from meshkit.errors import ErrorKind, MeshError
from services.tasks.api import updates
from services.tasks.catalog import Catalog
from services.tasks.domain import TaskRecord, TaskStatus
from tests.unit.tasks.test_convert import record

CreateTask: Any = task_pb2.CreateTask
Task: Any = task_pb2.Task


def update(operator: bool = False, **values: Any) -> updates.Update:
    return updates.Update.of(task_pb2.TaskUpdate(**values), (), operator=operator)


def experimental_fal(**changes: Any) -> TaskRecord:
    spec = CreateTask(experimental_fal={"fal_app_id": "fal-ai/flux", "fal_parameters": {"steps": 4}})
    body = Task(experimental_fal={"fal_app_id": "fal-ai/flux", "fal_parameters": {"steps": 4}})
    return record(
        task_type="EXPERIMENTAL_FAL",
        provider_type="FAL_STANDARD",
        spec=spec.SerializeToString(),
        body=body.SerializeToString(),
        **changes,
    )


@pytest.mark.parametrize(
    ("change", "members"),
    [
        (Change.ANY_TIME, {"status", "priority", "config", "origin_instance", "origin_reference", "origin_zone"}),
        (Change.NEVER, {"created_at", "task_type", "origin_tenant_id"}),
        (Change.IGNORED, {"celery_task_id", "updated_at", "completed_at"}),
    ],
)
def test_callers_change_these_members_of_any_task(change: Change, members: set[str]) -> None:
    assert {name for name, who in DECLARED.changes.items() if who is change} == members


@pytest.mark.parametrize(
    ("task_type", "members"),
    [
        (
            "GENERATION",
            {
                *(f"{slot}_model_path" for slot in ("subject", "product", "style", "product2")),
                *(f"{slot}_lora_weight" for slot in ("subject", "product", "style", "product2")),
                "reference_image_path",
                "reference_image_strength",
            },
        ),
        ("EXPERIMENTAL_FAL", {"fal_app_id", "fal_parameters"}),
        ("IMAGE_ADJUSTER", {"reference_image_path"}),
        ("EDITING", set()),
        ("LLM_INTERACTION", set()),
    ],
)
def test_callers_change_these_members_of_a_type_while_it_waits(task_type: str, members: set[str]) -> None:
    changes = TASK_TYPES[task_type].changes
    assert {name for name, who in changes.items() if who is Change.WHILE_PENDING} == members


def test_application_and_parameters_of_a_waiting_experimental_task_are_its_callers() -> None:
    asked = update(fal_app_id="fal-ai/other", fal_parameters={"steps": 8})
    waiting = experimental_fal()
    after = updates.apply(waiting, updates.check(waiting, asked), Catalog())
    for changed in (CreateTask.FromString(after.spec), Task.FromString(after.body)):
        assert changed.experimental_fal.fal_app_id == "fal-ai/other"
        assert changed.experimental_fal.fal_parameters["steps"] == 8
    with pytest.raises(MeshError) as error:
        updates.check(experimental_fal(status="EXECUTING"), asked)
    assert error.value.reason == "TASK_STARTED"


def test_application_of_another_type_is_an_operators() -> None:
    with pytest.raises(MeshError) as error:
        updates.check(record(), update(fal_app_id="fal-ai/other"))
    assert error.value.reason == "OPERATOR_ONLY"
    updates.check(record(), update(operator=True, fal_app_id="fal-ai/other"))


def test_member_of_another_type_is_refused() -> None:
    with pytest.raises(MeshError) as error:
        updates.check(record(), update(operator=True, fal_parameters={"steps": 8}))
    assert error.value.violations[0].path == "update.fal_parameters"


def test_new_reference_takes_the_place_of_every_source() -> None:
    spec = CreateTask(image_adjuster={"input_image": "a.png", "reference_image": "b.png"})
    body = Task(image_adjuster={"input_image_path": "a.png", "reference_image_path": "b.png"})
    adjuster = record(task_type="IMAGE_ADJUSTER", spec=spec.SerializeToString(), body=body.SerializeToString())
    for waiting, detail, source in (
        (adjuster, "image_adjuster", "reference_image"),
        (record(), "generation", "reference_image_url"),
    ):
        after = updates.apply(waiting, updates.check(waiting, update(reference_image_path="c.png")), Catalog())
        assert getattr(getattr(CreateTask.FromString(after.spec), detail), source) == "c.png"
        assert getattr(Task.FromString(after.body), detail).reference_image_path == "c.png"


def test_mask_with_an_unknown_member_is_refused() -> None:
    with pytest.raises(MeshError) as error:
        updates.Update.of(task_pb2.TaskUpdate(), ["nothing"], operator=True)
    assert error.value.kind is ErrorKind.INVALID


@pytest.mark.parametrize("wanted", [status for status in TaskStatus if status is not TaskStatus.CANCELLED])
def test_caller_sets_no_other_status_than_cancelled(wanted: TaskStatus) -> None:
    number = enums_pb2.TaskStatus.Value(f"TASK_STATUS_{wanted}")
    asked = update(status=number)
    if wanted is TaskStatus.PENDING:
        updates.check(record(), asked)  # the state it has is no change
        return
    with pytest.raises(MeshError) as error:
        updates.check(record(), asked)
    assert error.value.kind is ErrorKind.FORBIDDEN


@pytest.mark.parametrize("current", [TaskStatus.COMPLETED, TaskStatus.FAILED])
def test_ended_task_cannot_be_cancelled_by_an_update(current: TaskStatus) -> None:
    ended = record(status=current.value)
    with pytest.raises(MeshError) as error:
        updates.check(ended, update(status=enums_pb2.TASK_STATUS_CANCELLED))
    assert error.value.kind is ErrorKind.CONFLICT


def test_operator_may_fail_only_a_task_that_waits() -> None:
    asked = update(operator=True, status=enums_pb2.TASK_STATUS_FAILED)
    updates.check(record(), asked)
    with pytest.raises(MeshError) as error:
        updates.check(record(status="EXECUTING"), asked)
    assert error.value.kind is ErrorKind.CONFLICT


def test_changed_adapters_change_what_is_warm() -> None:
    asked = update(style_model_path="styles/ink", config={"model": "big"})
    after = updates.apply(record(), updates.check(record(), asked), Catalog())
    assert after.warm_keys == ["styles/ink", "model:big"]
    assert task_pb2.CreateTask.FromString(after.spec).generation.style_model_path == "styles/ink"


def test_unknown_queue_and_foreign_capability_are_refused_in_updates_too() -> None:
    for values in (
        {"queue_name": "nowhere"},
        {"active_provider_capabilities": ["VISION"]},
        {"fallback_provider_type": enums_pb2.PROVIDER_TYPE_VERTEX},
    ):
        asked = updates.check(record(), update(operator=True, **values))
        with pytest.raises(MeshError) as error:
            updates.apply(record(), asked, Catalog())
        assert error.value.kind is ErrorKind.INVALID


def test_a_request_at_a_provider_is_not_an_operators_to_name_in_settings() -> None:
    asked = update(
        operator=True,
        fallback_provider_type=enums_pb2.PROVIDER_TYPE_FAL_STANDARD,
        fallback_provider_config={"fal_standard": {"fal_app_id": "a/b", "fal_request_id": "another's"}},
    )
    catalog = Catalog(providers=("LOCAL", "FAL_STANDARD"))
    with pytest.raises(MeshError) as error:
        updates.apply(refine(), asked, catalog)
    [violation] = error.value.violations
    assert violation.path == "update.fallback_provider_config.fal_standard.fal_request_id"


@pytest.mark.parametrize("member", ["fal_request_id", "service_task_id"])
def test_a_request_at_a_provider_is_not_a_callers_to_name_in_an_update(member: str) -> None:
    with pytest.raises(MeshError) as error:
        updates.check(experimental_fal(), update(operator=False, **{member: "another's"}))
    assert error.value.kind is ErrorKind.FORBIDDEN


def refine(**changes: Any) -> TaskRecord:
    spec = CreateTask(refine={"upscale_enabled": True, "upscale_factor": 4})
    body = Task(refine={"upscale_factor": 4}, active_provider_capabilities=["UPSCALE_4X"])
    return record(
        task_type="REFINE", spec=spec.SerializeToString(), body=body.SerializeToString(), warm_keys=[], **changes
    )


def test_capabilities_that_an_update_clears_are_filled_in_and_those_it_lists_suffice() -> None:
    served = Catalog(task_types=["REFINE"])
    cleared = updates.Update.of(task_pb2.TaskUpdate(), ["active_provider_capabilities"], operator=True)
    after = updates.apply(refine(), updates.check(refine(), cleared), served)
    assert list(Task.FromString(after.body).active_provider_capabilities) == ["UPSCALE_4X"]
    asked = update(operator=True, active_provider_capabilities=["UPSCALE_2X"])
    with pytest.raises(MeshError) as error:
        updates.apply(refine(), updates.check(refine(), asked), served)
    assert error.value.violations[0].path == "update.active_provider_capabilities"


def test_a_fallback_that_an_update_names_gets_what_the_task_relies_on() -> None:
    served = Catalog(task_types=["REFINE"], providers=["LOCAL", "FREEPIK_MAGNIFIC"])
    asked = update(operator=True, fallback_provider_type=enums_pb2.PROVIDER_TYPE_FREEPIK_MAGNIFIC)
    after = updates.apply(refine(), updates.check(refine(), asked), served)
    assert list(Task.FromString(after.body).fallback_provider_capabilities) == ["UPSCALE_4X"]
    asked = update(
        operator=True,
        fallback_provider_type=enums_pb2.PROVIDER_TYPE_FREEPIK_MAGNIFIC,
        fallback_provider_capabilities=["SEED"],
    )
    with pytest.raises(MeshError) as error:
        updates.apply(refine(), updates.check(refine(), asked), served)
    assert error.value.violations[0].path.startswith("update.fallback_provider_capabilities")
