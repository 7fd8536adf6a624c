import numpy as np
import pytest

from modelkit.patches import Blend, PixelBox, feather, grown, match_colour, match_histogram


def test_a_box_grows_around_its_centre_by_a_share_of_its_sides() -> None:
    assert grown((40, 20, 60, 60), 0.5) == PixelBox(35, 10, 65, 70)
    assert grown((40, 20, 60, 60), 0) == PixelBox(40, 20, 60, 60)


def test_a_box_is_cut_at_the_pictures_edge() -> None:
    box = PixelBox(-5, 10, 65, 70).within(50, 40)
    assert box == PixelBox(0, 10, 50, 40)
    assert (box.width, box.height) == (50, 30)
    assert PixelBox(60, 60, 70, 70).within(50, 50).width == 0


def test_an_ellipse_covers_its_centre_and_leaves_its_corners() -> None:
    weights = feather(PixelBox(0, 0, 40, 60), 100, 100, 8, "ellipse")
    assert weights.shape == (60, 40)
    assert weights[30, 20] == 1
    assert weights[0, 0] == weights[59, 39] == 0
    rows = weights[30, :21]
    assert (np.diff(rows) >= 0).all()
    assert ((rows > 0) & (rows < 1)).sum() >= 6


def test_an_ellipse_of_a_face_at_the_edge_is_cut_with_it() -> None:
    whole = feather(PixelBox(10, 10, 50, 70), 100, 100, 8, "ellipse")
    cut = feather(PixelBox(-20, 10, 20, 70), 100, 100, 8, "ellipse")
    np.testing.assert_allclose(cut, whole[:, 20:], atol=1e-6)
    assert cut[30, 0] == 1


def test_a_boxs_edge_is_soft_inside_the_picture_and_hard_along_its_edge() -> None:
    weights = feather(PixelBox(0, 10, 40, 50), 100, 100, 8, "box")
    assert weights[20, 0] == 1
    assert weights[0, 20] < 0.1
    assert weights[20, -1] < 0.1
    assert weights[20, 20] == 1


@pytest.mark.parametrize("shape", ["ellipse", "box"])
def test_no_feather_is_a_hard_edge(shape: str) -> None:
    weights = feather(PixelBox(10, 10, 50, 50), 100, 100, 0, shape)  # type: ignore[arg-type] # one of the two
    assert set(np.unique(weights)) <= {0.0, 1.0}


def test_colour_is_matched_and_detail_stays() -> None:
    lots = np.random.default_rng(0)
    original = np.full((64, 64, 3), (0.6, 0.4, 0.3), np.float32)
    detail = lots.normal(0, 0.05, (64, 64, 1)).astype(np.float32)
    redrawn = (original * 0.7 + 0.1 + detail).astype(np.float32)
    matched = match_colour(redrawn, original)
    assert np.abs(matched.mean((0, 1)) - original.mean((0, 1))).max() < 0.01
    assert matched.std() > 0.8 * redrawn.std()


def test_overlapping_parts_share_their_place_whatever_their_order() -> None:
    pixels = np.full((40, 60, 3), 100, np.uint8)
    first, second = PixelBox(0, 0, 40, 40), PixelBox(20, 0, 60, 40)
    ones = np.ones((40, 40), np.float32)

    def made(*parts: tuple[PixelBox, float]) -> np.ndarray:
        blend = Blend(pixels)
        for box, value in parts:
            blend.lay(box, np.full((40, 40, 3), value, np.float32), ones)
        return blend.result()

    one, other = made((first, 0.0), (second, 1.0)), made((second, 1.0), (first, 0.0))
    np.testing.assert_array_equal(one, other)
    assert one[20, 10, 0] == 0
    assert one[20, 30, 0] in (127, 128)
    assert one[20, 50, 0] == 255


def test_pixels_that_no_part_covers_stay() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    blend = Blend(pixels)
    blend.lay(PixelBox(0, 0, 10, 10), np.zeros((10, 10, 3), np.float32), np.zeros((10, 10), np.float32))
    np.testing.assert_array_equal(blend.result(), pixels)


def test_a_histogram_is_given_back_in_the_order_of_its_own_levels() -> None:
    original = np.random.default_rng(1).random((60, 50, 3)).astype(np.float32) ** 2
    changed = (original * 0.5 + 0.4).astype(np.float32)
    made = match_histogram(changed, original)
    assert np.abs(made - original).mean() < 0.01
    assert np.abs(match_histogram(original, original) - original).max() < 0.01
    flat = np.zeros((8, 8, 3), np.float32)
    assert (match_histogram(np.full_like(flat, 0.7), flat) == 0).all()
    assert (match_histogram(flat, np.ones_like(flat)) == 1).all()
