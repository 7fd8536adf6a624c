"""Loops over several processes."""

from datetime import UTC, datetime

import pytest

from meshkit.loops import LoopState
from services.monitoring.supervision.domain import NOBODY, LoopOnReplica, Wish, followed, is_name, overview

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def loop(
    name: str = "a", state: LoopState = LoopState.RUNNING, count: int = 0, revision: int = 0, error: str | None = None
) -> LoopOnReplica:
    return LoopOnReplica(name, state, count, NOW, NOW if error else None, error, revision)


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ((LoopState.RUNNING, LoopState.RUNNING), LoopState.RUNNING),
        ((LoopState.RUNNING, LoopState.STOPPED), LoopState.STOPPED),
        ((LoopState.STOPPED, LoopState.CRASHED), LoopState.CRASHED),
        ((LoopState.CRASHED, LoopState.FAILED), LoopState.FAILED),
        ((LoopState.RUNNING, LoopState.RESTARTING), LoopState.RESTARTING),
    ],
)
def test_the_worst_of_its_states_is_shown(states: tuple[LoopState, ...], shown: LoopState) -> None:
    [found] = overview([], [loop(state=state) for state in states])
    assert found.state is shown


def test_counts_and_errors_of_all_processes_are_seen() -> None:
    [found] = overview([], [loop(count=1, error="OSError"), loop(count=3)])
    assert (found.restart_count, found.error, found.crashed_at) == (3, "OSError", NOW)


def test_a_loop_that_nobody_reports_is_crashed_and_says_why() -> None:
    first, second = overview(["b"], [loop("a")])
    assert (first.name, second.name) == ("a", "b")
    assert (second.state, second.error) == (LoopState.CRASHED, NOBODY)


def test_a_wish_is_followed_once_every_process_has_done_so() -> None:
    wish = Wish("a", revision=5)
    assert not followed(wish, {})
    assert not followed(wish, {"one": [loop(revision=5)], "two": [loop(revision=4)]})
    assert followed(wish, {"one": [loop(revision=5)], "two": [loop(revision=6)], "three": [loop("b")]})


@pytest.mark.parametrize(
    ("name", "holds"),
    [("file_watcher", True), ("A1", True), ("1a", False), ("a-b", False), ("", False), ("a\n", False)],
)
def test_names_follow_the_pattern(name: str, holds: bool) -> None:
    assert is_name(name) is holds
