"""Rows of workflows that are kept between decisions."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from services.workflows.domain import WorkflowStatus
from services.workflows.postgres.snapshot_cache import SnapshotCache
from services.workflows.store import WorkflowSnapshot
from tests.unit.workflows.rows import NOW, step, workflow


def whole(result: bytes = b"", version: int = 1) -> WorkflowSnapshot:
    row = workflow(status=WorkflowStatus.RUNNING, version=version)
    return WorkflowSnapshot(replace(row, id=uuid4()), (step("a", result=result),))


def is_kept(recent: SnapshotCache, one: WorkflowSnapshot) -> bool:
    return recent.find(one.workflow.id, one.workflow.version, one.workflow.updated_at) is one


def test_a_workflow_is_found_by_the_version_and_the_moment_of_its_row() -> None:
    recent, one = SnapshotCache(), whole(version=3)
    recent.keep(one)
    assert is_kept(recent, one)
    assert recent.find(one.workflow.id, 4, NOW) is None
    assert recent.find(one.workflow.id, 3, NOW + timedelta(microseconds=1)) is None
    assert recent.find(uuid4(), 3, NOW) is None


@pytest.mark.parametrize("status", [WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED])
def test_a_workflow_that_ended_is_forgotten(status: WorkflowStatus) -> None:
    recent, one = SnapshotCache(), whole()
    recent.keep(one)
    ended = replace(one, workflow=replace(one.workflow, status=status))
    recent.keep(ended)
    assert not is_kept(recent, one)
    assert not is_kept(recent, ended)


def test_those_that_were_written_longest_ago_make_room() -> None:
    recent = SnapshotCache(max_bytes=30_000)
    first, second, third = (whole(b"x" * 8_000) for _ in range(3))
    for one in (first, second, first, third):
        recent.keep(one)
    assert [is_kept(recent, one) for one in (first, second, third)] == [True, False, True]
    recent.forget(first.workflow.id)
    recent.keep(second)
    assert [is_kept(recent, one) for one in (first, second, third)] == [False, True, True]


def test_one_that_is_too_large_is_not_kept() -> None:
    recent, small, large = SnapshotCache(max_bytes=30_000), whole(), whole(b"x" * 40_000)
    recent.keep(small)
    recent.keep(large)
    assert not is_kept(recent, large)
    recent.keep(small)
    assert is_kept(recent, small)
