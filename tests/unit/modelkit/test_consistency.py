import numpy as np
import pytest

from modelkit.consistency import ConsistencyCheck, Scores, Thresholds, ssim
from modelkit.errors import ModelError

LOTS = np.random.default_rng(0)
NOISE = LOTS.integers(0, 256, (48, 40, 3), np.uint8)


def changed(by: float) -> np.ndarray:
    return np.asarray((NOISE + np.random.default_rng(1).normal(0, by, NOISE.shape)).clip(0, 255), np.uint8)


class Fixed:
    def __init__(self, value: float) -> None:
        self.value = value

    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        assert first.shape == second.shape
        return self.value


def test_equal_pictures_have_a_similarity_of_one_and_less_with_each_change() -> None:
    assert ssim(NOISE, NOISE) == pytest.approx(1)
    values = [ssim(NOISE, changed(by)) for by in (10, 30, 90)]
    assert 1 > values[0] > values[1] > values[2]


def test_a_similarity_is_the_published_formula_on_flat_pictures() -> None:
    first, second = np.full((20, 20, 3), 100, np.uint8), np.full((20, 20, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(first, second) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
def test_pictures_smaller_than_the_window_are_compared(size: tuple[int, int]) -> None:
    part = NOISE[: size[0], : size[1]]
    assert ssim(part, part) == pytest.approx(1)
    assert ssim(part, 255 - part) < 1


def test_a_check_passes_at_its_threshold_and_fails_below() -> None:
    value = ssim(NOISE, changed(30))
    assert ConsistencyCheck(Thresholds(ssim=value)).measure(NOISE, changed(30)).passed
    assert not ConsistencyCheck(Thresholds(ssim=value + 0.01)).measure(NOISE, changed(30)).passed


def test_checks_that_are_off_measure_nothing_and_pass() -> None:
    scores = ConsistencyCheck(Thresholds(ssim=0)).measure(NOISE, 255 - NOISE)
    assert scores == Scores(None, None, None, 1.0)
    assert scores.passed


@pytest.mark.parametrize(("lpips", "dists", "passed"), [(0.2, 0.3, True), (0.1, 0.3, False), (0.2, 0.1, False)])
def test_distances_pass_up_to_their_thresholds(lpips: float, dists: float, passed: bool) -> None:
    networks = {"lpips": Fixed(0.2), "dists": Fixed(0.3)}
    scores = ConsistencyCheck(Thresholds(0.7, lpips, dists), networks).measure(NOISE, NOISE)
    assert (scores.lpips, scores.dists, scores.passed) == (0.2, 0.3, passed)


def test_a_network_whose_check_is_off_is_not_asked() -> None:
    scores = ConsistencyCheck(Thresholds(0.7, lpips=0.5), {"lpips": Fixed(0.1), "dists": Fixed(0.9)})
    assert scores.measure(NOISE, NOISE).dists is None


def test_a_check_without_its_network_is_refused() -> None:
    with pytest.raises(ModelError, match="lpips_threshold"):
        ConsistencyCheck(Thresholds(lpips=0.1))
