"""The simulated cluster, in short: an hour of sixty pods."""

from dataclasses import replace

import pytest

from bench.scaling import ScalingOutcome, Scenario, by_processors, by_scheduler
from services.tasks.scaling.domain import ScalePolicy

SHORT = Scenario(seconds=5400, most=60)
POLICY = ScalePolicy(surplus_seconds=120, settle_seconds=5)


def simulated(scenario: Scenario) -> ScalingOutcome:
    return by_scheduler(scenario, POLICY)[0]


@pytest.mark.parametrize("patch_seconds", [0.2, 10.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_busy_pod_is_chosen_and_work_does_not_wait_for_twice_a_start(patch_seconds: float, seed: int) -> None:
    outcome = simulated(replace(SHORT, patch_seconds=patch_seconds, seed=seed))
    assert outcome.busy_chosen == 0
    assert outcome.removed > 30
    assert outcome.wait_p95 < 2 * SHORT.start_seconds
    assert outcome.zero_seconds > 0


def test_without_cordons_the_same_cluster_does_choose_busy_pods() -> None:
    # The age of a pod decides there; so the simulation can tell the difference.
    chosen = sum(by_processors(replace(SHORT, seconds=10_800, seed=seed))[0].busy_chosen for seed in range(1, 7))
    assert chosen > 0
