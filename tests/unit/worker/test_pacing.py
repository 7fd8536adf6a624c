import pytest

from meshkit.worker.pacing import pause


@pytest.mark.parametrize("took", [0.001, 10.0])
def test_a_worker_of_few_slots_that_was_given_all_asks_again_at_once(took: float) -> None:
    assert pause(2, 2, took) == 0


def test_a_poll_that_was_answered_with_nothing_is_not_paced_here() -> None:
    assert pause(0, 32, 20.0) == 0


def test_work_that_keeps_coming_gathers() -> None:
    assert pause(1, 32, 0.001) > 0
    assert pause(1, 32, 5.0) == 0, "it waited for its work: there was nothing to gather"
    assert pause(20, 32, 5.0) > 0


def test_a_backlog_is_asked_for_sooner_than_work_that_keeps_coming() -> None:
    assert 0 < pause(32, 32, 0.001) < pause(20, 32, 0.001)
