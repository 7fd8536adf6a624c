"""A worker, its child and its leases, over real sockets and processes."""

import asyncio
import os
import signal

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE, ERROR_CATEGORY_TIMEOUT

from tests.integration.inference.conftest import StartWorker
from tests.integration.inference.desk import TENANT, Desk


async def test_a_leased_task_is_executed_stored_and_completed(desk: Desk, start_worker: StartWorker) -> None:
    worker = await start_worker()
    job = desk.add(payload="hello", result_bytes=1000, steps=2)
    await desk.until(lambda: desk.completions(job))
    [request] = desk.completions(job)
    assert request.result.noop.payload == "hello"
    assert request.result.noop.result_path == f"results/{job}/1/result.bin"
    [written] = request.objects
    assert (written.path, written.size) == (f"results/{job}/1/result.bin", 1000)
    assert await worker.objects.get(TENANT, written.path) == bytes(1000)
    await desk.until(lambda: not worker.leftovers())


async def test_many_tasks_are_all_completed_once(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker(worker_slots=8)
    jobs = {desk.add(payload=str(number)) for number in range(300)}
    await desk.until(lambda: len(desk.completed) >= 300)
    assert {each.ref.job_id for each in desk.completed} == jobs
    assert len(desk.completed) == 300


async def test_a_failed_attempt_is_told_and_the_next_one_succeeds(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    job = desk.add(failures=2)
    await desk.until(lambda: desk.completions(job))
    assert [each.ref.attempt for each in desk.failures(job)] == [1, 2]
    assert all(each.retryable for each in desk.failures(job))
    assert desk.completions(job)[0].ref.attempt == 3


async def test_a_killed_child_costs_its_attempt_and_no_other(desk: Desk, start_worker: StartWorker) -> None:
    worker = await start_worker()
    job, waiting = desk.add(steps=100, step_ms=20), desk.add(payload="waits")
    await desk.until(lambda: desk.progress)
    os.kill(worker.child().pid, signal.SIGKILL)
    await desk.until(lambda: desk.completions(job) and desk.completions(waiting))
    [lost] = desk.failures(job)
    assert (lost.category, lost.retryable) == (ERROR_CATEGORY_RESOURCE, True)
    assert not desk.failures(waiting)
    assert desk.completions(waiting)[0].ref.attempt == 1


async def test_a_child_that_ends_itself_is_replaced(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    job = desk.add(fault="exit")
    await desk.until(lambda: desk.completions(job))
    assert [each.category for each in desk.failures(job)] == [ERROR_CATEGORY_RESOURCE]


async def test_a_hung_child_is_killed_at_its_deadline(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker(step_deadline_seconds=0.6, first_step_deadline_seconds=0.6)
    job = desk.add(fault="hang")
    await desk.until(lambda: desk.completions(job))
    assert [each.category for each in desk.failures(job)] == [ERROR_CATEGORY_TIMEOUT]


async def test_who_runs_beside_a_hung_task_does_not_pay_for_it(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker(worker_slots=2, step_deadline_seconds=1, first_step_deadline_seconds=1)
    beside, hung = desk.add(steps=100, step_ms=30), desk.add(fault="hang")
    await desk.until(lambda: desk.completions(beside) and desk.completions(hung))
    assert not desk.failures(beside)
    assert len(desk.failures(hung)) == 1


async def test_a_child_above_its_memory_budget_is_killed(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker(child_memory_bytes=300 << 20, step_deadline_seconds=30, first_step_deadline_seconds=30)
    job = desk.add(fault="allocate")
    await desk.until(lambda: desk.completions(job))
    [lost] = desk.failures(job)
    assert lost.category == ERROR_CATEGORY_RESOURCE
    assert "memory" in lost.message


async def test_a_lost_answer_to_a_poll_costs_nothing(desk: Desk, start_worker: StartWorker) -> None:
    desk.lose_answers = 1
    await start_worker()
    job = desk.add()
    await desk.until(lambda: desk.completions(job))
    assert desk.completions(job)[0].ref.attempt == 1
    assert not desk.failed


async def test_a_cancelled_task_ends_within_a_step_and_is_confirmed(desk: Desk, start_worker: StartWorker) -> None:
    desk.ttl = 1.5
    await start_worker()
    job, after = desk.add(steps=1000, step_ms=50), desk.add()
    await desk.until(lambda: desk.progress)
    desk.cancelled.add(job)
    await desk.until(lambda: (job, 1) in desk.released, 3)
    await desk.until(lambda: desk.completions(after))
    assert not desk.completions(job)
    assert not desk.failures(job)


async def test_an_attempt_past_its_time_limit_fails_by_timeout(desk: Desk, start_worker: StartWorker) -> None:
    desk.requeue = False
    await start_worker()
    job = desk.add(steps=1000, step_ms=50, timeout_seconds=0.3)
    await desk.until(lambda: desk.failures(job))
    assert desk.failures(job)[0].category == ERROR_CATEGORY_TIMEOUT


async def test_a_time_limit_counts_from_the_beginning(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    first, second = desk.add(steps=16, step_ms=50), desk.add(steps=14, step_ms=50, timeout_seconds=1.2)
    await desk.until(lambda: desk.completions(first) and desk.completions(second))
    assert not desk.failed


async def test_every_attempt_has_a_time_limit_of_its_own(desk: Desk, start_worker: StartWorker) -> None:
    desk.requeue = False
    await start_worker(worker_slots=3)
    long, short, middle = (desk.add(steps=24, step_ms=50, timeout_seconds=limit) for limit in (60, 0.3, 0.7))
    await desk.until(lambda: desk.completions(long))
    assert [each.ref.job_id for each in desk.failed] == [short, middle]
    assert {each.category for each in desk.failed} == {ERROR_CATEGORY_TIMEOUT}


async def test_an_attempt_that_has_not_begun_at_its_limit_is_handed_back(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    running, waiting = desk.add(steps=40, step_ms=50), desk.add(timeout_seconds=0.6)
    await desk.until(lambda: (waiting, 1) in desk.released)
    await desk.until(lambda: desk.completions(running))
    assert not desk.failed
    assert not desk.completions(waiting)


async def test_what_was_stored_for_an_attempt_that_was_taken_over_is_deleted(
    desk: Desk, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    late, good = desk.add(result_bytes=9), desk.add(result_bytes=9)
    desk.taken_over.add(late)
    await desk.until(lambda: desk.orphans and desk.completions(good))
    assert desk.orphans == [f"results/{late}/1/result.bin"]
    async with asyncio.timeout(5):
        while await worker.objects.stat(TENANT, desk.orphans[0]) is not None:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)
    assert await worker.objects.stat(TENANT, f"results/{good}/1/result.bin") is not None
    assert not desk.failed


async def test_a_late_completion_is_refused_and_the_worker_goes_on(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    job = desk.add(steps=20, step_ms=20)
    await desk.until(lambda: desk.active([job]))
    desk.cancelled.add(job)
    await desk.until(lambda: (job, 1) in desk.refused or (job, 1) in desk.released)
    after = desk.add()
    await desk.until(lambda: desk.completions(after))
    assert not desk.completions(job)


async def test_a_tasks_service_that_is_away_for_a_while_loses_nothing(desk: Desk, start_worker: StartWorker) -> None:
    await start_worker()
    job = desk.add(steps=20, step_ms=20)
    await desk.until(lambda: desk.active([job]))
    desk.away = True
    polls = len(desk.polls)
    await asyncio.sleep(1.5)
    assert len(desk.polls) - polls < 12, "it spins"
    desk.away = False
    after = desk.add()
    await desk.until(lambda: desk.completions(job) and desk.completions(after))
    assert len(desk.opened) == 1
    assert desk.completions(job)[0].ref.attempt == 1


async def test_a_forgotten_session_is_opened_anew_and_its_work_dropped(desk: Desk, start_worker: StartWorker) -> None:
    desk.ttl = 1.5
    worker = await start_worker()
    job = desk.add(steps=60, step_ms=50)
    await desk.until(lambda: desk.progress)
    desk.forget_sessions()
    await desk.until(lambda: desk.completions(job))
    assert [each.ref.attempt for each in desk.completions(job)] == [2]
    assert len(desk.opened) == 2
    await desk.until(lambda: not worker.leftovers())


async def test_drain_finishes_what_runs_and_hands_the_rest_back(desk: Desk, start_worker: StartWorker) -> None:
    worker = await start_worker()
    running, waiting = desk.add(steps=30, step_ms=30), desk.add()
    await desk.until(lambda: desk.progress and desk.active([running, waiting]) == 2)
    worker.stop.set()
    await asyncio.wait_for(worker.ended, 10)
    assert [each.ref.job_id for each in desk.completed] == [running]
    assert desk.released == [(waiting, 1)]
    assert len(desk.closed) == 1
    assert not worker.leftovers()


async def test_drain_hands_back_what_does_not_end_within_the_grace(desk: Desk, start_worker: StartWorker) -> None:
    worker = await start_worker(shutdown_grace_seconds=0.5)
    job = desk.add(steps=10_000, step_ms=30)
    await desk.until(lambda: desk.progress)
    worker.stop.set()
    await asyncio.wait_for(worker.ended, 10)
    assert desk.released == [(job, 1)]
    assert not desk.failed
