"""Which pods are marked, and how marks are set and taken back."""

import pytest

from services.monitoring.marker.domain import COST, FORMER, LOWERED, STAYS, CordonedWorker, Pod, mark, plan, unmark


def changed(pod: Pod, changes: dict[str, str | None]) -> Pod:
    merged = {**pod.annotations, **changes}
    return Pod(pod.name, pod.uid, {key: value for key, value in merged.items() if value is not None})


@pytest.mark.parametrize("annotations", [{}, {COST: "7"}, {STAYS[0]: "false", STAYS[1]: "true", "other": "kept"}])
def test_a_mark_that_is_taken_back_leaves_what_was(annotations: dict[str, str]) -> None:
    pod = Pod("p", "u", annotations)
    marked = changed(pod, mark(pod))
    assert marked.is_marked
    assert marked.annotations[COST] == LOWERED
    assert not set(marked.annotations) & set(STAYS)
    assert changed(marked, unmark(marked)) == pod


def test_what_is_set_meanwhile_is_left_and_a_mark_that_does_not_read_is_removed() -> None:
    pod = Pod("p", "u", {STAYS[0]: "false"})
    marked = changed(pod, mark(pod))
    again = changed(marked, {STAYS[0]: "true"})
    assert changed(again, unmark(again)).annotations == {STAYS[0]: "true"}
    for text in ("no json", "[1]"):
        assert changed(pod, unmark(Pod("p", "u", {FORMER: text, COST: LOWERED}))).annotations == {STAYS[0]: "false"}


def pods(*names: str, marked: tuple[str, ...] = (), leaving: tuple[str, ...] = ()) -> dict[str, Pod]:
    return {name: Pod(name, name, {FORMER: "{}"} if name in marked else {}, leaving=name in leaving) for name in names}


def test_pods_of_cordoned_workers_are_announced_and_others_freed() -> None:
    found = plan(
        pods("a", "b", "c", "d", marked=("b", "c"), leaving=("d",)),
        [
            CordonedWorker("a", surplus=True),
            CordonedWorker("b", surplus=True, noted=True),
            CordonedWorker("c", surplus=False, noted=True),
            CordonedWorker("d", surplus=True),
            CordonedWorker("nowhere", surplus=True),
        ],
    )
    assert (found.announce, found.unmark, found.marked, found.unmarked) == (["a"], ["c"], [], [])


def test_what_the_scheduler_does_not_know_is_told() -> None:
    found = plan(
        pods("a", "b", "c", marked=("a",)),
        [
            CordonedWorker("a", surplus=False),
            CordonedWorker("b", surplus=False, noted=True),
            CordonedWorker("c", surplus=False, announced=True),
        ],
    )
    assert (found.marked, found.unmark, found.unmarked) == (["a"], ["a"], ["b", "c"])


def test_a_pod_without_a_worker_loses_its_mark() -> None:
    assert plan(pods("a", marked=("a",)), []).unmark == ["a"]
