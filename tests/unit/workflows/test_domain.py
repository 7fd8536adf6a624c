import re
from pathlib import Path

import pytest
from atelier.workflows.v1 import workflow_pb2

from services.workflows import migrations
from services.workflows.domain import (
    ENDED,
    STEP_TRANSITIONS,
    TRANSITIONS,
    Approval,
    OnFailure,
    StepState,
    WorkflowStatus,
    may,
    step_may,
    task_id_of,
)
from tests.unit.workflows.rows import ID


def test_states_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("WORKFLOW_STATUS_") for name in workflow_pb2.WorkflowStatus.keys()}  # noqa: SIM118 -- an enum's keys, not a dict's
    assert set(WorkflowStatus) == contract - {"UNSPECIFIED"}
    steps = {name.removeprefix("STEP_STATUS_") for name in workflow_pb2.StepStatus.keys()}  # noqa: SIM118 -- an enum's keys, not a dict's
    assert set(StepState) - {"DISPATCHING"} == steps - {"UNSPECIFIED"}


def test_the_database_allows_the_same_states() -> None:
    folder = Path(migrations.__path__[0]) / "versions"
    text = "\n".join(file.read_text() for file in sorted(folder.glob("*.py")))
    for column, values in {
        "status": WorkflowStatus,
        "state": StepState,
        "on_failure": OnFailure,
        "approval": Approval,
    }.items():
        listed = re.search(rf"CHECK \({column} IN \(([^)]*)\)", text)
        assert listed is not None, column
        assert set(re.findall(r"'(\w+)'", listed[1])) == {value.value for value in values}


def test_every_state_has_its_row_in_the_tables() -> None:
    assert set(TRANSITIONS) == set(WorkflowStatus)
    assert set(STEP_TRANSITIONS) == set(StepState)


@pytest.mark.parametrize("status", sorted(ENDED - {WorkflowStatus.FAILED}))
def test_what_ended_well_or_by_its_caller_never_changes(status: WorkflowStatus) -> None:
    assert not any(may(status, other) for other in WorkflowStatus)


def test_a_completed_step_is_never_done_again() -> None:
    assert not any(step_may(StepState.COMPLETED, other) for other in StepState)


def test_no_state_follows_itself() -> None:
    assert not any(may(one, one) for one in WorkflowStatus)
    assert not any(step_may(one, one) for one in StepState)


def test_a_task_is_named_by_workflow_step_and_attempt_alone() -> None:
    assert task_id_of(ID, "a", 1) == task_id_of(ID, "a", 1)
    assert len({task_id_of(ID, name, attempt) for name in ("a", "a/1", "b") for attempt in (1, 11)}) == 6
