from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.worker.batch_queue import BatchQueue


@dataclass(eq=False)
class Job:
    batch_key: Hashable | None


def test_jobs_of_one_key_that_wait_together_run_together() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 0.005)
    jobs = [Job("a") for _ in range(3)]
    for job in jobs:
        batcher.add(job, 0.0)
    assert batcher.take(0.006) == jobs


def test_a_batch_that_is_not_full_waits_a_moment_for_company() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 0.005)
    batcher.add(Job("a"), 1.0)
    assert batcher.take(1.0) == []
    assert batcher.ripe_at() == pytest.approx(1.005)
    assert len(batcher.take(1.006)) == 1


def test_a_batch_does_not_wait_for_company_that_is_not_on_its_way() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 10.0)
    alone = Job("a")
    batcher.add(alone, 1.0, expected_peers=False)
    assert batcher.take(1.0) == [alone]
    pair = [Job("a"), Job("a")]
    batcher.add(pair[0], 2.0, expected_peers=True)
    assert batcher.take(2.0) == []
    batcher.add(pair[1], 2.001, expected_peers=False)
    assert batcher.take(2.001) == pair


def test_what_waits_for_a_slot_is_joined_by_what_comes_later() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 10.0)
    jobs = [Job("a") for _ in range(3)]
    for moment, job in enumerate(jobs):
        batcher.add(job, float(moment), expected_peers=False)
    assert batcher.take(3.0) == jobs


def test_a_full_batch_does_not_wait() -> None:
    batcher: BatchQueue[Job] = BatchQueue(2, 10.0)
    batcher.add(Job("a"), 0.0)
    batcher.add(Job("a"), 0.0)
    batcher.add(Job("a"), 0.0)
    assert len(batcher.take(0.0)) == 2
    assert batcher.take(0.0) == []


def test_a_job_without_a_key_runs_alone_and_at_once() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 10.0)
    jobs = [Job(None), Job(None)]
    for job in jobs:
        batcher.add(job, 0.0)
    assert batcher.take(0.0) == [jobs[0]]
    assert batcher.take(0.0) == [jobs[1]]


def test_one_that_waits_for_company_does_not_hold_up_those_behind_it() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 10.0)
    waits, goes = Job("a"), Job(None)
    batcher.add(waits, 0.0)
    batcher.add(goes, 0.0)
    assert batcher.take(0.0) == [goes]


def test_other_keys_are_not_mixed() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 0.0)
    first, second = Job("a"), Job("b")
    batcher.add(first, 0.0)
    batcher.add(second, 0.0)
    assert batcher.take(0.0) == [first]
    assert batcher.take(0.0) == [second]


def test_a_removed_job_does_not_run() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 0.0)
    first, second = Job("a"), Job("a")
    batcher.add(first, 0.0)
    batcher.add(second, 0.0)
    assert batcher.remove(first)
    assert not batcher.remove(first)
    assert batcher.take(0.0) == [second]
    batcher.add(Job("a"), 0.0)
    assert len(batcher) == 1


def test_what_is_put_back_goes_first_and_is_not_joined() -> None:
    batcher: BatchQueue[Job] = BatchQueue(4, 0.0)
    early = Job("a")
    batcher.add(early, 0.0)
    taken = batcher.take(0.0)
    batcher.add(Job(None), 0.0)
    batcher.put_back(taken, 1.0)
    batcher.add(Job("a"), 1.0)
    assert batcher.take(1.0) == [early]
    assert len(batcher) == 2


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=40), st.integers(1, 5))
def test_every_job_runs_once_in_batches_of_one_key(keys: list[str | None], most: int) -> None:
    batcher: BatchQueue[Job] = BatchQueue(most, 0.005)
    jobs = [Job(key) for key in keys]
    for job in jobs:
        batcher.add(job, 0.0)
    ran: list[Job] = []
    while batch := batcher.take(1.0):
        assert len(batch) <= (1 if batch[0].batch_key is None else most)
        assert len({job.batch_key for job in batch}) == 1
        ran += batch
    assert sorted(map(id, ran)) == sorted(map(id, jobs))
    assert len(batcher) == 0
