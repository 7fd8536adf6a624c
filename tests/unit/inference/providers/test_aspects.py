"""Pictures on sheets of the aspects that a model draws: padded and cut back without a shift."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.inference.providers.aspects import ASPECTS, Sheet, ratio_of

sides = st.integers(2, 130)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(width=sides, height=sides, aspect=st.sampled_from((None, *ASPECTS)), enlarged=st.sampled_from((1, 2, 5)))
def test_what_is_cut_is_what_was_padded_pixel_by_pixel(
    width: int, height: int, aspect: str | None, enlarged: int
) -> None:
    image, sheet = noise(width, height), Sheet.around(width, height, aspect)
    padded = sheet.padded(image)
    drawn = padded.resize((padded.width * enlarged, padded.height * enlarged), Image.Resampling.NEAREST)
    expected = image.resize((width * enlarged, height * enlarged), Image.Resampling.NEAREST)
    cut = sheet.cut(drawn)
    assert cut.size == expected.size
    assert cut.tobytes() == expected.tobytes()


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (97, 33), (41, 90), (1000, 700)])
def test_a_sheet_has_its_aspect_to_the_pixel(width: int, height: int, aspect: str) -> None:
    sheet = Sheet.around(width, height, aspect)
    padded = sheet.padded(noise(width, height))
    wanted = ratio_of(aspect)
    if not sheet.whole:
        assert abs(padded.width - padded.height * wanted) <= max(1.0, wanted)
        assert padded.width == width or padded.height == height
