"""The lease client against a service made of scripted answers, on a clock that moves only when all wait."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable

import pytest
from atelier.inference.v1.child_pb2 import ChildDone
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL
from atelier.tasks.v1.task_pb2 import TaskResult
from atelier.tasks.v1.worker_service_pb2 import (
    COMPLETION_VERDICT_LOST,
    COMPLETION_VERDICT_REFUSED,
    COMPLETION_VERDICT_UNDECIDED,
    AttemptRef,
)

from meshkit.errors import MeshError, not_found, unavailable
from meshkit.worker.ends import ReportOutcome
from meshkit.worker.held import HeldLease
from meshkit.worker.pacing import Backoff
from tests.unit.worker.scripted import INTERVAL, TTL, Rig, during

USED = ChildDone(device_seconds=1.0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.service.errors.clear()
    await rig.client.close()


async def test_an_answered_poll_raises_the_sequence(rig: Rig) -> None:
    await rig.holding(("a", 1))
    assert [request.sequence for request in rig.service.of("Lease")] == [1, 2]
    assert [request.max_leases for request in rig.service.of("Lease")] == [4, 3]


async def test_a_poll_whose_answer_is_lost_is_repeated_under_its_number(rig: Rig) -> None:
    rig.client.start()
    rig.service.refuse_poll(unavailable("gone"))
    await rig.clock.advance(1)
    assert [request.sequence for request in rig.service.of("Lease")] == [1, 1]
    rig.service.lease(("a", 1))
    await rig.clock.settle()
    assert [held.key for held in rig.accepted] == [("a", 1)]


async def test_polls_stop_without_room_and_go_on_with_it(rig: Rig) -> None:
    rig.room = 1
    await rig.holding(("a", 1))
    await rig.clock.advance(3)
    assert len(rig.service.of("Lease")) == 1
    rig.room = 2
    rig.asked.set()
    await rig.clock.settle()
    assert [request.max_leases for request in rig.service.of("Lease")] == [4 - 3, 1]


async def test_a_poll_names_the_tenants_that_have_their_share_and_is_soon_followed_by_another(rig: Rig) -> None:
    rig.full = ["b", "a"]
    rig.client.start()
    await rig.clock.advance(0.1)
    rig.full = []
    rig.service.lease()
    await rig.clock.advance(5)
    first, second = rig.service.of("Lease")[:2]
    assert (list(first.full_tenants), first.wait.seconds) == (["a", "b"], 1)
    assert list(second.full_tenants) == []
    assert 15 <= second.wait.seconds <= 20


async def test_polls_of_an_idle_worker_wait_for_different_times(rig: Rig) -> None:
    rig.client.start()
    for _ in range(5):
        await rig.clock.advance(1)
        rig.service.lease()
    await rig.clock.advance(1)
    waits = [request.wait.ToTimedelta() for request in rig.service.of("Lease")]
    assert len(waits) >= 5
    assert len(set(waits)) > 1


async def test_polls_of_a_busy_service_gather(rig: Rig) -> None:
    rig.room = 300
    rig.client.start()
    for number in range(100):
        rig.service.lease((str(number), 1))
    await rig.clock.advance(0.1)
    assert 5 <= len(rig.accepted) <= 15


async def test_a_poll_that_was_given_many_is_followed_once_these_may_have_ended(rig: Rig) -> None:
    rig.room = 8
    held = await rig.holding(*((str(number), 1) for number in range(8)))
    rig.room = 10  # two slots are free already
    rig.asked.set()
    await rig.clock.settle()
    assert len(rig.service.of("Lease")) == 1
    held.clear()
    await rig.clock.advance(0.1)
    assert [request.max_leases for request in rig.service.of("Lease")] == [8, 10]


async def test_a_poll_that_waited_for_its_work_is_followed_at_once(rig: Rig) -> None:
    await rig.holding(("a", 1))
    assert len(rig.service.of("Lease")) == 2


async def test_a_service_that_answers_nothing_at_once_is_not_asked_in_a_circle(rig: Rig) -> None:
    rig.client.start()
    for _ in range(100):
        rig.service.lease()
    await rig.clock.advance(10)
    assert len(rig.service.of("Lease")) < 12


async def test_a_service_that_is_away_is_asked_ever_more_seldom_and_for_ever(rig: Rig) -> None:
    rig.service.errors["OpenSession"] = unavailable("away")
    rig.client.start()
    await rig.clock.advance(120)
    tries = len(rig.service.of("OpenSession"))
    assert 20 < tries < 70
    rig.service.errors.clear()
    rig.service.lease(("a", 1))
    await rig.clock.advance(6)
    assert rig.accepted


async def test_polls_and_heartbeats_outlive_a_fault(rig: Rig) -> None:
    rig.service._leases.put_nowait(object())  # type: ignore[arg-type]  # no answer that the client knows
    rig.service.errors["Heartbeat"] = RuntimeError("broken")  # type: ignore[assignment]  # raised as it is
    rig.client.start()
    await rig.clock.advance(INTERVAL + 0.1)
    rig.service.errors.clear()
    rig.service.lease(("a", 1))
    await rig.clock.advance(TTL)
    assert [held.key for held in rig.accepted] == [("a", 1)]
    assert len(rig.service.of("OpenSession")) == 1


async def test_heartbeats_name_what_is_held(rig: Rig) -> None:
    await rig.holding(("a", 1), ("b", 3))
    await rig.clock.advance(INTERVAL)
    assert [(ref.job_id, ref.attempt) for ref in rig.service.of("Heartbeat")[-1].held] == [("a", 1), ("b", 3)]


async def test_news_makes_the_next_heartbeat_go_at_once(rig: Rig) -> None:
    await rig.holding(("a", 1))
    rig.heartbeat_now.set()
    await rig.clock.settle()
    assert len(rig.service.of("Heartbeat")) == 1


async def test_what_is_to_be_given_up_is_taken_from_its_holder(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    why: list[str] = []
    held.on_lost(why.append)
    rig.service.give_up = [AttemptRef(job_id="a", attempt=1)]
    await rig.clock.advance(INTERVAL)
    assert why == ["given_up"]
    await rig.ends.release([held])
    assert [ref.job_id for request in rig.service.of("Release") for ref in request.refs] == ["a"]
    assert not len(rig.held)


async def test_what_it_never_had_is_confirmed_at_once(rig: Rig) -> None:
    await rig.holding()
    rig.service.give_up = [AttemptRef(job_id="x", attempt=2)]
    await rig.clock.advance(INTERVAL)
    assert [ref.job_id for ref in rig.service.of("Release")[0].refs] == ["x"]


async def test_an_attempt_is_stopped_once_heartbeats_failed_for_the_time_to_live(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    why: list[str] = []
    held.on_lost(why.append)
    rig.service.errors["Heartbeat"] = unavailable("away")
    await rig.clock.advance(TTL - 0.5)
    assert not why
    await rig.clock.advance(4)
    assert why == ["expired"]
    assert len(rig.service.of("OpenSession")) == 2


async def test_the_time_to_live_counts_from_before_the_heartbeat_was_sent(rig: Rig) -> None:
    await rig.holding(("a", 1))
    await rig.clock.advance(INTERVAL)
    session = rig.client.session
    sent = next(moment for moment, name, _ in rig.service.calls if name == "Heartbeat")
    assert session is not None
    assert session.alive_until == sent + TTL


async def test_a_few_lost_heartbeats_cost_nothing(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.errors["Heartbeat"] = unavailable("away")
    await rig.clock.advance(INTERVAL + 4)
    rig.service.errors.clear()
    await rig.clock.advance(60)
    assert held.lost is None
    assert len(rig.service.of("OpenSession")) == 1


@pytest.mark.parametrize("method", ["Lease", "Heartbeat"])
async def test_an_unknown_session_is_replaced_and_starts_counting_anew(rig: Rig, method: str) -> None:
    [held] = await rig.holding(("a", 1))
    if method == "Lease":
        rig.service.refuse_poll(not_found("session", "s1"))
    else:
        rig.service.errors["Heartbeat"] = not_found("session", "s1")
        await rig.clock.advance(INTERVAL)
        rig.service.errors.clear()
    await rig.clock.settle()
    assert held.lost == "expired"
    last = rig.service.of("Lease")[-1]
    assert (last.session_id, last.sequence) == ("s2", 1)


async def test_a_completion_is_repeated_until_the_service_answers(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.errors["CompleteMany"] = unavailable("away")
    task = await during(rig, rig.ends.complete(held, TaskResult(), (), USED), 4)
    assert not task.done()
    rig.service.errors.clear()
    await rig.clock.advance(6)
    assert task.result() is ReportOutcome.TAKEN
    assert len(rig.service.of("CompleteMany")) > 2
    assert not len(rig.held)


async def test_a_completion_ends_with_its_lease(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    for method in ("CompleteMany", "Heartbeat", "OpenSession"):
        rig.service.errors[method] = unavailable("away")
    task = await during(rig, rig.ends.complete(held, TaskResult(), (), USED), TTL + 10)
    assert task is ReportOutcome.UNKNOWN
    tries = len(rig.service.of("CompleteMany"))
    await rig.clock.advance(30)
    assert len(rig.service.of("CompleteMany")) == tries


async def test_a_result_that_was_taken_is_known_though_its_attempt_is_gone(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.errors["CompleteMany"] = unavailable("the answer is lost")
    task = asyncio.ensure_future(rig.ends.complete(held, TaskResult(), (), USED))
    await rig.clock.settle()
    rig.service.give_up = [AttemptRef(job_id="a", attempt=1)]  # it has ended: by this very report
    rig.heartbeat_now.set()
    await rig.clock.settle()
    rig.service.errors.clear()
    assert await during(rig, task, 1) is ReportOutcome.TAKEN


async def test_a_result_that_was_never_sent_is_lost_with_its_attempt(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    held.lose("given_up")
    assert await during(rig, rig.ends.complete(held, TaskResult(), (), USED), 1) is ReportOutcome.LOST
    assert not rig.service.of("CompleteMany")
    assert [ref.job_id for request in rig.service.of("Release") for ref in request.refs] == ["a"]


async def test_an_attempt_that_nobody_takes_goes_back(rig: Rig) -> None:
    def refuse(held: HeldLease) -> None:
        if held.lease.job_id == "a":
            raise RuntimeError("no")
        rig.accepted.append(held)

    rig.client._accept = refuse
    rig.client.start()
    rig.service.lease(("a", 1), ("b", 1))
    await rig.clock.advance(1)
    assert [ref.job_id for request in rig.service.of("Release") for ref in request.refs] == ["a"]
    assert [held.key for held in rig.held.all()] == [("b", 1)]
    rig.service.lease(("c", 1))
    await rig.clock.advance(1)
    assert [held.key for held in rig.accepted] == [("b", 1), ("c", 1)]


async def test_a_late_completion_is_not_repeated(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.verdicts["a"] = COMPLETION_VERDICT_LOST
    assert await during(rig, rig.ends.complete(held, TaskResult(), (), USED), 1) is ReportOutcome.LOST
    assert len(rig.service.of("CompleteMany")) == 1
    assert not len(rig.held)


async def test_a_result_that_is_refused_for_itself_is_the_callers_to_fail(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.verdicts["a"] = COMPLETION_VERDICT_REFUSED
    with pytest.raises(MeshError):
        await rig.ends.complete(held, TaskResult(), (), USED)
    assert rig.held.all() == [held]
    assert await rig.ends.fail(held, "x" * 9000, ERROR_CATEGORY_INTERNAL, retryable=True)
    assert len(rig.service.of("Fail")[0].message) == 4096


async def test_a_completion_that_is_not_decided_is_sent_again_and_alone(rig: Rig) -> None:
    first, second = await rig.holding(("a", 1), ("b", 1))
    rig.service.verdicts["a"] = COMPLETION_VERDICT_UNDECIDED
    ends = asyncio.gather(*(rig.ends.complete(held, TaskResult(), (), USED) for held in (first, second)))
    await rig.clock.settle()
    assert rig.held.all() == [first]
    rig.service.verdicts.clear()
    assert (await during(rig, ends, 1)) == [ReportOutcome.TAKEN, ReportOutcome.TAKEN]
    sent = [[each.ref.job_id for each in request.completions] for request in rig.service.of("CompleteMany")]
    assert sent == [["a", "b"], ["a"]]


async def test_closing_does_not_wait_for_completions_that_are_on_their_way(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.service.errors["CompleteMany"] = unavailable("away")
    task = asyncio.ensure_future(rig.ends.complete(held, TaskResult(), (), USED))
    await rig.clock.settle()
    await rig.client.close()
    await rig.clock.advance(1)
    assert task.done()
    assert not len(rig.held)


async def test_progress_is_sent_a_few_times_a_second_and_only_the_newest(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    for step in range(100):
        rig.held.progress(held, step, step=step, total=100, preview=b"jpeg" if step == 50 else b"")
        await rig.clock.advance(0.01)
    await rig.clock.advance(1)
    reports = [report for request in rig.service.of("Report") for report in request.progress]
    assert 3 <= len(reports) <= 6
    assert reports[-1].step == 99
    assert b"jpeg" in [report.preview for report in reports]


async def test_what_ends_at_once_reports_no_progress(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.held.progress(held, 50, step=1, total=2)
    await rig.clock.advance(0.1)
    assert await during(rig, rig.ends.complete(held, TaskResult(), (), USED), 0.05) is ReportOutcome.TAKEN
    await rig.clock.advance(1)
    assert not rig.service.of("Report")


async def test_drain_asks_for_no_more_and_tells_the_service(rig: Rig) -> None:
    await rig.holding(("a", 1))
    polls = len(rig.service.of("Lease"))
    rig.client.drain()
    rig.service.lease(("b", 1))
    await rig.clock.advance(INTERVAL)
    assert len(rig.service.of("Lease")) == polls
    assert rig.service.of("Heartbeat")[-1].draining
    assert len(rig.accepted) == 1


async def test_close_hands_back_what_is_held_and_ends_the_session(rig: Rig) -> None:
    await rig.holding(("a", 1), ("b", 1))
    await rig.client.close()
    assert [ref.job_id for ref in rig.service.of("Release")[0].refs] == ["a", "b"]
    assert [request.session_id for request in rig.service.of("CloseSession")] == ["s1"]


def test_pauses_grow_to_their_bound_and_are_spread() -> None:
    backoff = Backoff(0.1, 5.0)
    assert all(0.05 <= backoff.pause(1) <= 0.1 for _ in range(50))
    assert all(2.5 <= backoff.pause(50) <= 5.0 for _ in range(50))
    pause: Callable[[int], float] = backoff.pause
    assert len({pause(10) for _ in range(10)}) > 1


async def test_an_ended_attempt_and_its_holder_are_freed_at_once(rig: Rig) -> None:
    class Holder:
        def __init__(self, held: HeldLease) -> None:
            self.held = held
            held.on_lost(self.stop)

        def stop(self, why: str) -> None:
            pass

    [held] = await rig.holding(("a", 1))
    holder = Holder(held)
    left = weakref.ref(holder)
    gc.disable()
    try:
        assert await rig.ends.complete(held, TaskResult(), (), USED) is ReportOutcome.TAKEN
        rig.accepted.clear()
        del held, holder
        assert left() is None
    finally:
        gc.enable()


async def test_the_newest_text_is_sent_also_where_a_later_step_has_none(rig: Rig) -> None:
    [held] = await rig.holding(("a", 1))
    rig.held.progress(held, 1, step=1, total=9, text="a")
    rig.held.progress(held, 2, step=2, total=9, text="a red")
    rig.held.progress(held, 3, step=3, total=9)
    await rig.clock.advance(1)
    [report] = [report for request in rig.service.of("Report") for report in request.progress]
    assert (report.step, report.text) == (3, "a red")
