"""States, progress and logs of trainings; Python, the contract and the schema name the same states."""

import re
from pathlib import Path

import pytest
from atelier.training.v1 import training_pb2

from services.training.convert import STATUS
from services.training.domain import (
    MAX_LOG_LENGTH,
    TERMINAL,
    TRANSITIONS,
    PreparationStage,
    TrainingStatus,
    may,
    preparation_progress,
    sources_of,
    training_progress,
    with_lines,
)

SCHEMA = Path("services/training/migrations/versions/0001_trainings.py").read_text(encoding="utf-8")


def values(column: str) -> list[str]:
    found = re.search(rf"CHECK \({column} IN \(([^)]*)\)", SCHEMA)
    assert found is not None
    return re.findall(r"'([^']+)'", found[1])


def test_states_are_those_of_the_contract_and_of_the_schema() -> None:
    assert list(TrainingStatus) == list(STATUS) == values("status")
    assert len(training_pb2.TrainingStatus.DESCRIPTOR.values) == len(TrainingStatus) + 1
    assert [one.value for one in PreparationStage] == values("preprocessing_stage")


def test_what_has_ended_stays_so_and_everything_else_can_end() -> None:
    assert set(TRANSITIONS) == set(TrainingStatus)
    assert all(not TRANSITIONS[status] for status in TERMINAL)
    for status in set(TrainingStatus) - TERMINAL:
        assert may(status, TrainingStatus.CANCELLED)
        assert may(status, TrainingStatus.FAILED)
    assert sources_of(TrainingStatus.COMPLETED) == ["TRAINING"]


def test_progress_rises_over_all_stages_and_steps() -> None:
    seen = [preparation_progress(stage, done, 4) for stage in PreparationStage for done in range(5)]
    seen += [training_progress(step, 7) for step in range(8)]
    assert seen == sorted(seen)
    assert (seen[0], training_progress(0, 7), seen[-1]) == (0.0, 10.0, 100.0)
    assert preparation_progress(PreparationStage.COMPLETED, 0, 0) == 10.0
    assert preparation_progress(PreparationStage.VALIDATING, 3, 0) == 2.0


@pytest.mark.parametrize("length", [1, 10, 1000])
def test_a_log_is_bounded_and_keeps_whole_last_lines(length: int) -> None:
    logs = ""
    for number in range(3 * MAX_LOG_LENGTH // (length + 8)):
        logs = with_lines(logs, [f"{number:06} " + "x" * length, " "])
    assert len(logs) <= MAX_LOG_LENGTH
    head, *lines = logs.splitlines()
    assert head == "[earlier lines are left out]"
    numbers = [int(line[:6]) for line in lines]
    assert numbers == list(range(numbers[0], number + 1))


def test_a_short_log_is_whole() -> None:
    assert with_lines(with_lines("", ["a", "b  "]), []) == "a\nb\n"
