import itertools
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2

from meshkit.errors import ErrorKind, MeshError
from services.tasks.api import updates
from services.tasks.catalog import Catalog
from services.tasks.domain import TaskStatus
from tests.unit.tasks.test_convert import record

ALL = {field.name for field in task_pb2.TaskUpdate.DESCRIPTOR.fields}
OPERATORS = ALL - updates.CALLERS - updates.INPUTS - updates.FIXED - updates.DERIVED


def update(operator: bool = False, **values: Any) -> updates.Update:
    return updates.Update.of(task_pb2.TaskUpdate(**values), (), operator=operator)


def test_every_member_of_an_update_has_exactly_one_rule() -> None:
    groups = (updates.CALLERS, updates.INPUTS, updates.FIXED, updates.DERIVED, OPERATORS)
    assert set().union(*groups) == ALL
    assert all(not one & other for one, other in itertools.combinations(groups, 2))


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
        {"active_provider_capabilities": ["VIDEO"]},
        {"fallback_provider_type": enums_pb2.PROVIDER_TYPE_VERTEX},
    ):
        asked = updates.check(record(), update(operator=True, **values))
        with pytest.raises(MeshError) as error:
            updates.apply(record(), asked, Catalog())
        assert error.value.kind is ErrorKind.INVALID
