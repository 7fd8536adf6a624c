import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit.card import ModelCard
from modelkit.sizes import SizePlan, cover, plan

SMALL = ModelCard(native_size=64, min_size=64, max_size=64)
FLUX = ModelCard()
sides = st.integers(16, 8192)


@pytest.mark.parametrize(
    ("card", "asked", "drawn"),
    [
        (SMALL, (64, 64), SizePlan(64, 64, enlarge=False)),
        (SMALL, (512, 512), SizePlan(64, 64, enlarge=True)),
        (SMALL, (768, 1024), SizePlan(48, 64, enlarge=True)),
        (SMALL, (32, 32), SizePlan(64, 64, enlarge=False)),
        (FLUX, (1024, 1024), SizePlan(1024, 1024, enlarge=False)),
        (FLUX, (1000, 600), SizePlan(1008, 608, enlarge=False)),
        (FLUX, (4096, 4096), SizePlan(1024, 1024, enlarge=True)),
        (FLUX, (3000, 2000), SizePlan(1248, 832, enlarge=True)),
        (FLUX, (64, 64), SizePlan(1024, 1024, enlarge=False)),
    ],
)
def test_the_size_that_is_drawn(card: ModelCard, asked: tuple[int, int], drawn: SizePlan) -> None:
    assert plan(card, *asked) == drawn


@given(sides, sides, st.sampled_from([SMALL, FLUX]))
def test_a_drawn_size_is_the_models_own(width: int, height: int, card: ModelCard) -> None:
    drawn = plan(card, width, height)
    for side in (drawn.width, drawn.height):
        assert side % card.size_multiple == 0
        assert card.size_multiple <= side <= card.max_size
    assert drawn.enlarge == (drawn.width < width or drawn.height < height)


@given(sides, sides, sides, sides)
def test_what_covers_a_target_is_inside_the_source_and_of_its_aspect(a: int, b: int, c: int, d: int) -> None:
    left, top, right, bottom = cover((a, b), (c, d))
    assert 0 <= left < right <= a
    assert 0 <= top < bottom <= b
    assert (right - left) * d == pytest.approx((bottom - top) * c, rel=1e-6)
    assert right - left == pytest.approx(a) or bottom - top == pytest.approx(b)
