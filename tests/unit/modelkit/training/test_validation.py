import pytest

from modelkit.training.validation import chosen


@pytest.mark.parametrize(
    ("count", "share", "held"), [(8, 0.25, 2), (8, 0.01, 1), (2, 0.9, 1), (10, 0.3, 3), (1, 0.5, 0)]
)
def test_pictures_that_measure_are_not_trained_on(count: int, share: float, held: int) -> None:
    trained, measured = chosen(count, share)
    if held:
        assert len(measured) == held
        assert sorted(trained + measured) == list(range(count))
    else:
        assert trained == measured == [0]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_without_held_out_pictures_some_do_both(count: int) -> None:
    trained, measured = chosen(count, 0.0)
    assert trained == list(range(count))
    assert len(set(measured)) == len(measured) == min(4, count)
    assert set(measured) <= set(trained)
