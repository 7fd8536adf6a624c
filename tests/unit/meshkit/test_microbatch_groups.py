"""Which items form a group, and when it is ready."""

from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.microbatch import Groups

NEVER = 3600.0


@dataclass(eq=False)
class Job:
    batch_key: Hashable | None


def groups(most: int, linger: float, max_bytes: int | None = None) -> Groups[Job]:
    return Groups(linger=linger, max_items=most, max_bytes=max_bytes)


def add(waiting: Groups[Job], job: Job, now: float, *, more: bool = True, size: int = 0) -> float:
    return waiting.add(job, now, key=job.batch_key, more=more, size=size)


def test_jobs_of_one_key_that_wait_together_run_together() -> None:
    waiting = groups(4, 0.005)
    jobs = [Job("a") for _ in range(3)]
    for job in jobs:
        add(waiting, job, 0.0)
    assert waiting.take(0.006) == jobs


def test_a_batch_that_is_not_full_lingers_for_more() -> None:
    waiting = groups(4, 0.005)
    add(waiting, Job("a"), 1.0)
    assert waiting.take(1.0) == []
    assert waiting.ready_at() == pytest.approx(1.005)
    assert len(waiting.take(1.006)) == 1


def test_a_batch_does_not_linger_where_no_more_are_expected() -> None:
    waiting = groups(4, 10.0)
    alone = Job("a")
    add(waiting, alone, 1.0, more=False)
    assert waiting.take(1.0) == [alone]
    pair = [Job("a"), Job("a")]
    add(waiting, pair[0], 2.0, more=True)
    assert waiting.take(2.0) == []
    add(waiting, pair[1], 2.001, more=False)
    assert waiting.take(2.001) == pair


def test_what_waits_for_a_slot_is_joined_by_what_comes_later() -> None:
    waiting = groups(4, 10.0)
    jobs = [Job("a") for _ in range(3)]
    for moment, job in enumerate(jobs):
        add(waiting, job, float(moment), more=False)
    assert waiting.take(3.0) == jobs


def test_a_full_batch_does_not_wait() -> None:
    waiting = groups(2, 10.0)
    add(waiting, Job("a"), 0.0)
    add(waiting, Job("a"), 0.0)
    add(waiting, Job("a"), 0.0)
    assert len(waiting.take(0.0)) == 2
    assert waiting.take(0.0) == []


def test_a_job_without_a_key_runs_alone_and_at_once() -> None:
    waiting = groups(4, 10.0)
    jobs = [Job(None), Job(None)]
    for job in jobs:
        add(waiting, job, 0.0)
    assert waiting.take(0.0) == [jobs[0]]
    assert waiting.take(0.0) == [jobs[1]]


def test_one_that_lingers_does_not_hold_up_those_behind_it() -> None:
    waiting = groups(4, 10.0)
    waits, goes = Job("a"), Job(None)
    add(waiting, waits, 0.0)
    add(waiting, goes, 0.0)
    assert waiting.take(0.0) == [goes]


def test_other_keys_are_not_mixed() -> None:
    waiting = groups(4, 0.0)
    first, second = Job("a"), Job("b")
    add(waiting, first, 0.0)
    add(waiting, second, 0.0)
    assert waiting.take(0.0) == [first]
    assert waiting.take(0.0) == [second]


def test_a_removed_job_does_not_run() -> None:
    waiting = groups(4, 0.0)
    first, second = Job("a"), Job("a")
    add(waiting, first, 0.0)
    add(waiting, second, 0.0)
    assert waiting.remove(first)
    assert not waiting.remove(first)
    assert waiting.take(0.0) == [second]
    add(waiting, Job("a"), 0.0)
    assert len(waiting) == 1


def test_what_is_put_back_goes_first_and_is_not_joined() -> None:
    waiting = groups(4, 0.0)
    early = Job("a")
    add(waiting, early, 0.0)
    taken = waiting.take(0.0)
    add(waiting, Job(None), 0.0)
    waiting.put_back(taken, 1.0)
    add(waiting, Job("a"), 1.0)
    assert waiting.take(1.0) == [early]
    assert len(waiting) == 2


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=40), st.integers(1, 5))
def test_every_job_runs_once_in_batches_of_one_key(keys: list[str | None], most: int) -> None:
    waiting = groups(most, 0.005)
    jobs = [Job(key) for key in keys]
    for job in jobs:
        add(waiting, job, 0.0)
    ran: list[Job] = []
    while batch := waiting.take(1.0):
        assert len(batch) <= (1 if batch[0].batch_key is None else most)
        assert len({job.batch_key for job in batch}) == 1
        ran += batch
    assert sorted(map(id, ran)) == sorted(map(id, jobs))
    assert len(waiting) == 0


def test_a_group_that_would_have_too_many_bytes_is_ready_and_joined_no_more() -> None:
    waiting = groups(10, 10.0, max_bytes=100)
    jobs = [Job("a") for _ in range(4)]
    for job, size in zip(jobs, (60, 60, 40, 500), strict=True):
        add(waiting, job, 0.0, size=size)
    assert waiting.take(0.0) == jobs[:1]
    assert waiting.take(0.0) == jobs[1:3]
    assert waiting.take(0.0) == []
    assert waiting.take(10.0) == jobs[3:], "one that is too large goes by itself"


def test_adding_tells_when_the_group_is_ready() -> None:
    waiting = groups(3, 10.0)
    assert add(waiting, Job(None), 1.0) == 1.0
    assert [add(waiting, Job("a"), now) for now in (1.0, 2.0, 3.0)] == [11.0, 11.0, 3.0]
    assert add(waiting, Job("a"), 4.0, more=False) == 4.0


def test_groups_that_are_not_full_may_linger_anew() -> None:
    waiting = groups(2, 10.0)
    full, rest_of_them = [Job("a"), Job("a")], [Job("a"), Job("b")]
    for job in (*full, *rest_of_them):
        add(waiting, job, 0.0, more=False)
    waiting.linger_from(5.0, more=True)
    assert waiting.take(5.0) == full
    assert waiting.take(14.9) == []
    assert waiting.ready_at() == 15.0
    waiting.linger_from(6.0, more=False)
    assert [waiting.take(6.0), waiting.take(6.0)] == [[one] for one in rest_of_them]


def test_all_that_waits_can_be_taken_at_once() -> None:
    waiting = groups(2, 10.0)
    jobs = [Job("a"), Job("b"), Job("a"), Job(None)]
    for job in jobs:
        add(waiting, job, 0.0)
    assert waiting.take_all() == [jobs[0], jobs[2], jobs[1], jobs[3]]
    assert (len(waiting), waiting.ready_at(), waiting.take_all()) == (0, None, [])
