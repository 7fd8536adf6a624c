"""Ends that workers report: once, repeated, late, and those that another release wrote."""

from functools import partial

import pytest
from atelier.tasks.v1 import enums_pb2, tasks_service_pb2

from meshkit.errors import MeshError
from tests.integration.tasks.conftest import Mesh, age_session, completion, outcomes

EXECUTING = enums_pb2.TASK_STATUS_EXECUTING
FAILED = enums_pb2.TASK_STATUS_FAILED


@pytest.mark.parametrize("ending", ["complete", "fail"])
async def test_attempt_that_a_release_of_before_wrote_at_its_lease_ends_as_one_row(mesh: Mesh, ending: str) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    await mesh.execute(
        "INSERT INTO attempts (task_id, attempt, session, executor_instance, started_at) "
        "SELECT id, attempt, lease_session, executor_instance, leased_at FROM tasks"
    )
    assert await outcomes(mesh, task.id) == ["UNSPECIFIED"]
    await (worker.complete(lease) if ending == "complete" else worker.fail(lease))
    assert await outcomes(mesh, task.id) == ["COMPLETED" if ending == "complete" else "FAILED"]


@pytest.mark.parametrize("ending", ["complete", "fail"])
async def test_end_that_a_replica_of_before_wrote_without_an_attempt_is_known_when_it_is_repeated(
    mesh: Mesh, ending: str
) -> None:
    task = await mesh.create()
    worker = await mesh.worker()
    [lease] = await worker.lease()
    end = worker.complete if ending == "complete" else partial(worker.fail, retryable=False)
    await end(lease)
    await mesh.execute("DELETE FROM attempts")
    await end(lease)
    assert await outcomes(mesh, task.id) == []
    lease.attempt += 1
    with pytest.raises(MeshError):
        await end(lease)


async def test_repeated_complete_and_fail_are_taken_once(mesh: Mesh) -> None:
    done, failed = await mesh.create(), await mesh.create()
    worker = await mesh.worker()
    leases = {lease.job_id: lease for lease in await worker.lease(2)}
    await worker.complete(leases[done.id])
    await worker.complete(leases[done.id])
    await worker.fail(leases[failed.id])
    await worker.fail(leases[failed.id])
    assert (await mesh.get(failed.id)).retry_count == 1
    with pytest.raises(MeshError) as error:
        await worker.fail(leases[done.id])
    assert error.value.reason == "LEASE_LOST"


async def test_errors_of_parts_are_kept_with_the_result(mesh: Mesh) -> None:
    whole, parts, many = await mesh.create(), await mesh.create(), await mesh.create()
    worker = await mesh.worker()
    leases = {lease.job_id: lease for lease in await worker.lease(3)}
    told = ["input_image_paths[2]: The image could not be read.", 'one with "quotes", a comma and a \\']
    ends = [completion(leases[each.id]) for each in (whole, parts, many)]
    ends[1].errors.extend(told)
    ends[2].errors.extend(f"line {number}" for number in range(64))
    assert await worker.complete_many(*ends) == ["TAKEN"] * 3
    tasks = [await mesh.get(each.id) for each in (whole, parts, many)]
    assert {task.status for task in tasks} == {enums_pb2.TASK_STATUS_COMPLETED}
    assert [list(task.errors) for task in tasks[:2]] == [[], told]
    assert list(tasks[2].errors) == [f"line {number}" for number in range(14, 64)]


async def test_completions_that_come_together_are_each_judged_by_themselves(mesh: Mesh) -> None:
    tasks = [await mesh.create() for _ in range(5)]
    worker = await mesh.worker()
    leases = {lease.job_id: lease for lease in await worker.lease(5)}
    good, empty, foreign, cancelled, again = (leases[task.id] for task in tasks)
    await mesh.tasks().CancelTask(tasks_service_pb2.CancelTaskRequest(task_id=cancelled.job_id))
    await worker.complete(again)
    verdicts = await worker.complete_many(
        completion(good, f"{good.result_prefix}result.bin"),
        completion(empty),
        completion(foreign, f"{good.result_prefix}result.bin"),
        completion(cancelled),
        completion(again),
    )
    assert verdicts == ["TAKEN", "TAKEN", "REFUSED", "LOST", "TAKEN"]
    statuses = [enums_pb2.TaskStatus.Name((await mesh.get(task.id)).status) for task in tasks]
    assert [name.removeprefix("TASK_STATUS_") for name in statuses] == [
        "COMPLETED",
        "COMPLETED",
        "EXECUTING",
        "CANCELLED",
        "COMPLETED",
    ]
    assert (await mesh.get(good.job_id)).noop.result_path == f"{good.result_prefix}result.bin"


async def test_completions_of_one_call_share_a_transaction(mesh: Mesh) -> None:
    tasks = [await mesh.create() for _ in range(6)]
    worker = await mesh.worker()
    leases = await worker.lease(6)
    assert await worker.complete_many(*(completion(lease) for lease in leases)) == ["TAKEN"] * len(tasks)
    [[transactions]] = await mesh.rows("SELECT count(DISTINCT completed_at) FROM tasks")
    assert transactions == 1


async def test_a_report_that_was_taken_and_is_repeated_with_new_ones_is_taken_again(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.create()
    worker = await mesh.worker()
    first, second, third = await worker.lease(3)
    assert await worker.complete_many(completion(first), completion(second)) == ["TAKEN", "TAKEN"]
    assert await worker.complete_many(completion(first), completion(second), completion(third)) == ["TAKEN"] * 3
    assert await outcomes(mesh, first.job_id) == ["COMPLETED"]


async def test_completions_of_a_group_that_fails_are_retried_one_by_one(mesh: Mesh) -> None:
    good, broken = await mesh.create(), await mesh.create()
    worker = await mesh.worker()
    leases = {lease.job_id: lease for lease in await worker.lease(2)}
    # A row that no completion can be written to: its group fails as a whole.
    await mesh.execute(f"ALTER TABLE tasks ADD CONSTRAINT stuck CHECK (id <> '{broken.id}' OR status <> 'COMPLETED')")
    verdicts = await worker.complete_many(completion(leases[good.id]), completion(leases[broken.id]))
    assert verdicts == ["TAKEN", "UNDECIDED"]
    await mesh.execute("ALTER TABLE tasks DROP CONSTRAINT stuck")
    assert await worker.complete_many(completion(leases[broken.id])) == ["TAKEN"]


async def test_late_attempt_cannot_end_the_next_one(mesh: Mesh) -> None:
    task = await mesh.create()
    slow, quick = await mesh.worker(name="slow"), await mesh.worker(name="quick")
    [first] = await slow.lease()
    await slow.heartbeat(first)
    await age_session(mesh, slow)
    await mesh.running.maintenance.expire()
    [second] = await quick.lease()
    assert second.attempt == 2
    for late in (slow.complete(first), slow.fail(first)):
        with pytest.raises(MeshError) as error:
            await late
        assert error.value.reason == "LEASE_LOST"
    await quick.complete(second)
    assert (await mesh.get(task.id)).status == enums_pb2.TASK_STATUS_COMPLETED
    assert await outcomes(mesh, task.id) == ["EXPIRED", "COMPLETED"]
