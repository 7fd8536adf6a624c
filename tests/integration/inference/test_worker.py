"""A worker, its child and its leases, over real sockets and processes."""

import asyncio
import os
import signal

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_TIMEOUT

from tests.integration.inference.conftest import StartWorker
from tests.integration.inference.fake_tasks import TENANT, FakeTasksService


async def test_a_leased_task_is_executed_stored_and_completed(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    job = tasks.add(payload="hello", result_bytes=1000, steps=2)
    await tasks.until(lambda: tasks.completions(job))
    [request] = tasks.completions(job)
    assert request.result.noop.payload == "hello"
    assert request.result.noop.result_path == f"results/{job}/1/result.bin"
    [written] = request.objects
    assert (written.path, written.size) == (f"results/{job}/1/result.bin", 1000)
    assert await worker.objects.get(TENANT, written.path) == bytes(1000)
    await tasks.until(lambda: not worker.leftovers())


async def test_many_tasks_are_all_completed_once(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    await start_worker(worker_slots=8)
    jobs = {tasks.add(payload=str(number)) for number in range(300)}
    await tasks.until(lambda: len(tasks.completed) >= 300)
    assert {each.ref.job_id for each in tasks.completed} == jobs
    assert len(tasks.completed) == 300


async def test_a_failed_attempt_is_told_and_the_next_one_succeeds(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker()
    job = tasks.add(failures=2)
    await tasks.until(lambda: tasks.completions(job))
    assert [each.ref.attempt for each in tasks.failures(job)] == [1, 2]
    assert all(each.retryable for each in tasks.failures(job))
    assert tasks.completions(job)[0].ref.attempt == 3


async def test_a_killed_child_costs_its_attempt_and_no_other(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    job, waiting = tasks.add(steps=100, step_ms=20), tasks.add(payload="waits")
    await tasks.until(lambda: tasks.progress)
    os.kill(worker.child().pid, signal.SIGKILL)
    await tasks.until(lambda: tasks.completions(job) and tasks.completions(waiting))
    [lost] = tasks.failures(job)
    assert (lost.category, lost.retryable) == (ERROR_CATEGORY_RESOURCE, True)
    assert not tasks.failures(waiting)
    assert tasks.completions(waiting)[0].ref.attempt == 1


async def test_a_child_that_ends_itself_is_replaced(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    await start_worker()
    job = tasks.add(fault="exit")
    await tasks.until(lambda: tasks.completions(job))
    assert [each.category for each in tasks.failures(job)] == [ERROR_CATEGORY_RESOURCE]


async def test_a_hung_child_is_killed_at_its_deadline(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    await start_worker(step_deadline_seconds=4, first_step_deadline_seconds=4)
    job = tasks.add(fault="hang")
    await tasks.until(lambda: tasks.completions(job))
    assert [each.category for each in tasks.failures(job)] == [ERROR_CATEGORY_TIMEOUT]


async def test_who_runs_beside_a_hung_task_does_not_pay_for_it(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker(worker_slots=2, step_deadline_seconds=3, first_step_deadline_seconds=3)
    beside, hung = tasks.add(steps=200, step_ms=30), tasks.add(fault="hang")
    await tasks.until(lambda: tasks.completions(beside) and tasks.completions(hung))
    assert not tasks.failures(beside)
    assert len(tasks.failures(hung)) == 1


async def test_a_child_above_its_memory_budget_is_killed(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    await start_worker(child_memory_bytes=300 << 20, step_deadline_seconds=30, first_step_deadline_seconds=30)
    job = tasks.add(fault="allocate")
    await tasks.until(lambda: tasks.completions(job))
    [lost] = tasks.failures(job)
    assert lost.category == ERROR_CATEGORY_RESOURCE
    assert "memory" in lost.message


async def test_a_lost_answer_to_a_poll_costs_nothing(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    tasks.lose_answers = 1
    await start_worker()
    job = tasks.add()
    await tasks.until(lambda: tasks.completions(job))
    assert tasks.completions(job)[0].ref.attempt == 1
    assert not tasks.failed


async def test_a_cancelled_task_ends_within_a_step_and_is_confirmed(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker()
    job, after = tasks.add(steps=10_000, step_ms=50), tasks.add()
    await tasks.until(lambda: tasks.progress)
    tasks.cancelled.add(job)
    await tasks.until(lambda: (job, 1) in tasks.released, 60)
    await tasks.until(lambda: tasks.completions(after))
    assert not tasks.completions(job)
    assert not tasks.failures(job)


async def test_an_attempt_past_its_time_limit_fails_by_timeout(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    tasks.requeue = False
    await start_worker()
    job = tasks.add(steps=1000, step_ms=50, timeout_seconds=0.3)
    await tasks.until(lambda: tasks.failures(job))
    assert tasks.failures(job)[0].category == ERROR_CATEGORY_TIMEOUT


async def test_a_time_limit_counts_from_the_beginning(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    await start_worker()
    # Both together take longer than the limit of the second.
    first, second = tasks.add(steps=80, step_ms=50), tasks.add(steps=14, step_ms=50, timeout_seconds=4.5)
    await tasks.until(lambda: tasks.completions(first) and tasks.completions(second))
    assert not tasks.failed


async def test_every_attempt_has_a_time_limit_of_its_own(tasks: FakeTasksService, start_worker: StartWorker) -> None:
    tasks.requeue = False
    await start_worker(worker_slots=3)
    long, short, middle = (tasks.add(steps=80, step_ms=50, timeout_seconds=limit) for limit in (60, 0.3, 1.5))
    await tasks.until(lambda: tasks.completions(long))
    assert [each.ref.job_id for each in tasks.failed] == [short, middle]
    assert {each.category for each in tasks.failed} == {ERROR_CATEGORY_TIMEOUT}


async def test_an_attempt_that_has_not_begun_at_its_limit_is_handed_back(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker()
    running, waiting = tasks.add(steps=40, step_ms=50), tasks.add(timeout_seconds=0.6)
    await tasks.until(lambda: (waiting, 1) in tasks.released)
    await tasks.until(lambda: tasks.completions(running))
    assert not tasks.failed
    assert not tasks.completions(waiting)


async def test_what_was_stored_for_an_attempt_that_was_taken_over_is_deleted(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    late, good = tasks.add(result_bytes=9), tasks.add(result_bytes=9)
    tasks.taken_over.add(late)
    await tasks.until(lambda: tasks.orphans and tasks.completions(good))
    assert tasks.orphans == [f"results/{late}/1/result.bin"]
    async with asyncio.timeout(60):
        while await worker.objects.stat(TENANT, tasks.orphans[0]) is not None:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)
    assert await worker.objects.stat(TENANT, f"results/{good}/1/result.bin") is not None
    assert not tasks.failed


async def test_a_late_completion_is_refused_and_the_worker_goes_on(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker()
    job = tasks.add(steps=75, step_ms=20)
    await tasks.until(lambda: tasks.active([job]))
    tasks.cancelled.add(job)
    await tasks.until(lambda: (job, 1) in tasks.refused or (job, 1) in tasks.released)
    after = tasks.add()
    await tasks.until(lambda: tasks.completions(after))
    assert not tasks.completions(job)


async def test_a_tasks_service_that_is_away_for_a_while_loses_nothing(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    await start_worker()
    job = tasks.add(steps=20, step_ms=20)
    await tasks.until(lambda: tasks.active([job]))
    tasks.away = True
    polls = len(tasks.polls)
    await asyncio.sleep(1.5)
    assert len(tasks.polls) - polls < 12, "it spins"
    tasks.away = False
    after = tasks.add()
    await tasks.until(lambda: tasks.completions(job) and tasks.completions(after))
    assert len(tasks.opened) == 1
    assert tasks.completions(job)[0].ref.attempt == 1


async def test_a_forgotten_session_is_opened_anew_and_its_work_dropped(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    job = tasks.add(steps=80, step_ms=50)  # heartbeats go every two seconds
    await tasks.until(lambda: tasks.progress)
    tasks.forget_sessions()
    await tasks.until(lambda: tasks.completions(job))
    assert [each.ref.attempt for each in tasks.completions(job)] == [2]
    assert len(tasks.opened) == 2
    await tasks.until(lambda: not worker.leftovers())


async def test_drain_finishes_what_runs_and_hands_the_rest_back(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    running, waiting = tasks.add(steps=30, step_ms=30), tasks.add()
    await tasks.until(lambda: tasks.progress and tasks.active([running, waiting]) == 2)
    worker.stop.set()
    await asyncio.wait_for(worker.ended, 60)
    assert [each.ref.job_id for each in tasks.completed] == [running]
    assert tasks.released == [(waiting, 1)]
    assert len(tasks.closed) == 1
    assert not worker.leftovers()


async def test_drain_hands_back_what_does_not_end_within_the_grace(
    tasks: FakeTasksService, start_worker: StartWorker
) -> None:
    worker = await start_worker(shutdown_grace_seconds=0.5)
    job = tasks.add(steps=10_000, step_ms=30)
    await tasks.until(lambda: tasks.progress)
    worker.stop.set()
    await asyncio.wait_for(worker.ended, 60)
    assert tasks.released == [(job, 1)]
    assert not tasks.failed
