"""Every kind of process dies at random under load, and nothing is lost, doubled, orphaned or miscounted."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e import chaos
from tests.e2e.harness import RunningMesh

TASKS = 200
SEED = 20261127


@pytest.mark.timeout(600)
def test_random_kills_lose_double_and_orphan_nothing(start_mesh: Callable[..., RunningMesh]) -> None:
    with chaos.receiver_and_settings() as (receiver, hook, environment):
        mesh = start_mesh(**environment)
        try:
            outcome = chaos.run(mesh, receiver, hook, tasks=TASKS, strikes=chaos.KINDS, seed=SEED)
        finally:
            mesh.down()
    assert outcome.clean, outcome.table()
    assert outcome.accepted == TASKS
    assert set(outcome.strikes.values()) == {1}, "each kind of blow falls once in the short form"


def test_a_seed_draws_the_same_blows_again() -> None:
    assert chaos.schedule(7, 40) == chaos.schedule(7, 40)
    assert chaos.schedule(7, 40) != chaos.schedule(8, 40)
    drawn = Counter(blow.name for blow in chaos.schedule(7, chaos.KINDS))
    assert len(drawn) == chaos.KINDS, "no kind comes again before each has come"
