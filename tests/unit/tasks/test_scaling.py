"""How many slots are reported, and who is cordoned."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from services.tasks.scaling.domain import CordonedBy, QueueWork, RemovalMark, ScaleIn, ScalePolicy, WorkerPool, demands

Q = "inference"
POLICY = ScalePolicy(drain_seconds=60, utilization=0.8, surplus_seconds=60, settle_seconds=5)


def pool(name: str, held: int = 0, *, queues: Sequence[str] = (Q,), slots: int = 4, **more: object) -> WorkerPool:
    return WorkerPool(uuid4(), name, queues, slots, held, **more)  # type: ignore[arg-type] # members by name


def cordoned(name: str, *, marked: bool = False, held: int = 0) -> WorkerPool:
    return pool(name, held, cordoned_by=CordonedBy.SCHEDULER, mark=RemovalMark.SET if marked else None)


def reported(work: QueueWork, pools: Sequence[WorkerPool]) -> float:
    [one] = demands([work], pools, POLICY)
    return one.slots_reported


def test_what_runs_takes_a_slot_and_what_waits_as_many_as_end_it_in_time() -> None:
    work = QueueWork(Q, waiting=100, waiting_seconds=300, running=3)
    assert work.slots_wanted(60) == pytest.approx(8)
    assert reported(work, []) == pytest.approx(10)  # at 80 %


def test_a_long_job_takes_one_slot() -> None:
    assert QueueWork(Q, waiting=1, waiting_seconds=6000).slots_wanted(60) == 1


def test_no_less_than_the_workers_that_must_not_go_is_reported() -> None:
    idle = QueueWork(Q)
    assert reported(idle, [pool("a"), cordoned("b"), cordoned("c", marked=True)]) == 8
    assert reported(idle, [cordoned("a", marked=True), cordoned("b", marked=True)]) == 0


def test_a_cordoned_worker_that_still_holds_something_must_not_go() -> None:
    assert reported(QueueWork(Q, running=1), [cordoned("a", marked=True, held=1)]) == 4


@pytest.mark.parametrize("mark", RemovalMark)
def test_none_may_go_while_a_worker_that_takes_work_bears_a_mark(mark: RemovalMark) -> None:
    pools = [pool("a", mark=mark), cordoned("b", marked=True)]
    assert reported(QueueWork(Q), pools) == 8


def test_workers_that_end_by_themselves_do_not_count() -> None:
    [one] = demands([QueueWork(Q)], [pool("a", draining=True)], POLICY)
    assert (one.slots, one.slots_reported, one.workers) == (0, 0, 0)


def test_what_an_operator_cordoned_is_provided_beside_what_is_wanted() -> None:
    held_out = pool("a", cordoned_by=CordonedBy.OPERATOR)
    [one] = demands([QueueWork(Q, running=8)], [held_out], POLICY)
    assert (one.slots, one.slots_reported, one.cordoned) == (0, 14, 1)


def test_a_worker_with_a_fault_takes_no_work_and_another_is_asked_for_in_its_place() -> None:
    faulty = pool("a", faulty=True)
    [one] = demands([QueueWork(Q, running=8)], [faulty, pool("b", 4), pool("c", 4)], POLICY)
    assert (one.slots, one.slots_reported, one.workers, one.cordoned) == (8, 14, 3, 0)
    assert reported(QueueWork(Q), [faulty]) == 4, "it must not go before it is cordoned and marked"


def test_where_every_worker_has_a_fault_no_more_than_twice_the_need_is_asked_for() -> None:
    work = QueueWork(Q, waiting=8, waiting_seconds=4800)
    assert [reported(work, [pool(f"{n}", faulty=True) for n in range(count)]) for count in (0, 2, 5)] == [10, 18, 20]


def test_a_worker_with_a_fault_is_cordoned_first_once_the_others_suffice_and_comes_back_sound_only() -> None:
    scale, work = ScaleIn(POLICY), [QueueWork(Q, running=3)]
    pools = [pool("busy", 3), pool("faulty", faulty=True)]
    for second in range(61):
        decision = scale.decide(second, work, pools)
    assert decision.cordon == ["faulty"]
    out = replace(pools[1], cordoned_by=CordonedBy.SCHEDULER)
    more = [QueueWork(Q, running=4, waiting=4, waiting_seconds=240)]
    assert scale.decide(61, more, [pools[0], out]).uncordon == []
    assert scale.decide(62, more, [pools[0], replace(out, faulty=False)]).uncordon == ["faulty"]


def test_workers_with_a_fault_stay_while_work_waits_for_them_and_go_once_none_does() -> None:
    scale, pools = ScaleIn(POLICY), [pool("a", faulty=True)]
    for second in range(61):
        assert not scale.decide(second, [QueueWork(Q, waiting=1, waiting_seconds=1)], pools).cordon
    for second in range(61, 122):
        decision = scale.decide(second, [QueueWork(Q)], pools)
    assert decision.cordon == ["a"]


def test_a_queue_is_active_while_anything_is_to_do_or_a_worker_must_not_go() -> None:
    def active(work: QueueWork, *pools: WorkerPool) -> bool:
        return demands([work], pools, POLICY)[0].is_active

    assert active(QueueWork(Q, waiting=1, waiting_seconds=0.1))
    assert active(QueueWork(Q, running=1))
    assert active(QueueWork(Q, delayed=1))
    assert active(QueueWork(Q), pool("a"))
    assert not active(QueueWork(Q), cordoned("a", marked=True))
    assert not active(QueueWork(Q))


def test_surplus_is_cordoned_only_once_it_has_lasted() -> None:
    scale = ScaleIn(POLICY)
    pools = [pool("busy", 4), pool("a"), pool("b")]
    work = [QueueWork(Q, running=4)]  # five slots at 80 %: one of the idle ones is needed
    for second in range(60):
        assert not scale.decide(second, work, pools).cordon
    assert scale.decide(60, work, pools).cordon == ["a"]


def test_a_dip_in_the_surplus_saves_a_worker() -> None:
    scale = ScaleIn(POLICY)
    pools = [pool("a"), pool("b")]
    for second in range(60):
        busy = QueueWork(Q, waiting=6, waiting_seconds=360) if second == 30 else QueueWork(Q)
        assert not scale.decide(second, [busy], pools).cordon
    assert not scale.decide(60, [QueueWork(Q)], pools).cordon
    for second in range(61, 92):
        decision = scale.decide(second, [QueueWork(Q)], pools)
    assert sorted(decision.cordon) == ["a", "b"]


def test_the_worker_that_was_idle_for_longest_goes_first_and_a_busy_one_never() -> None:
    scale = ScaleIn(POLICY)
    pools = {name: pool(name) for name in ("busy", "fresh", "old")}
    gone: dict[str, int] = {}
    for second in range(90):
        pools["busy"] = replace(pools["busy"], held=1)
        pools["fresh"] = replace(pools["fresh"], held=1 if second < 5 else 0)
        for name in scale.decide(second, [QueueWork(Q, running=1)], list(pools.values())).cordon:
            pools[name] = replace(pools[name], cordoned_by=CordonedBy.SCHEDULER)
            gone[name] = second
    assert gone == {"old": 60, "fresh": 65}


def test_some_are_kept() -> None:
    scale = ScaleIn(replace(POLICY, keep=1))
    for second in range(61):
        decision = scale.decide(second, [QueueWork(Q)], [pool("a"), pool("b")])
    assert decision.cordon == ["a"]


def test_workers_come_back_with_the_work_those_without_a_mark_first() -> None:
    scale = ScaleIn(POLICY)
    pools = [cordoned("a", marked=True), cordoned("b"), cordoned("c", marked=True)]
    assert scale.decide(0, [QueueWork(Q, waiting=3, waiting_seconds=180)], pools).uncordon == ["b"]
    more = scale.decide(1, [QueueWork(Q, waiting=6, waiting_seconds=360)], pools)
    assert more.uncordon[0] == "b"
    assert len(more.uncordon) == 2


def test_nothing_is_cordoned_beside_what_comes_back() -> None:
    scale = ScaleIn(POLICY)
    for second in range(61):
        decision = scale.decide(second, [QueueWork(Q, running=20)], [pool("a", 4), cordoned("b")])
        assert not decision.cordon
    assert decision.uncordon == ["b"]


def test_without_scale_in_workers_of_the_scheduler_come_back_and_an_operators_stay() -> None:
    scale = ScaleIn(replace(POLICY, surplus_seconds=0))
    held_out = pool("b", cordoned_by=CordonedBy.OPERATOR)
    decision = scale.decide(0, [QueueWork(Q)], [cordoned("a"), held_out, pool("c")])
    assert (decision.cordon, decision.uncordon) == ((), ["a"])


def test_a_replica_that_stood_still_watches_anew() -> None:
    scale = ScaleIn(POLICY)
    assert not scale.decide(0, [QueueWork(Q)], [pool("a")]).cordon
    assert not scale.decide(100, [QueueWork(Q)], [pool("a")]).cordon


def test_a_pod_goes_only_with_all_its_pools_idle() -> None:
    scale = ScaleIn(POLICY)
    for second in range(61):
        pools = [pool("pod/fal", 1, queues=("fal",)), pool("pod/vertex", queues=("vertex",))]
        assert not scale.decide(second, [QueueWork("fal", running=1), QueueWork("vertex")], pools).cordon
