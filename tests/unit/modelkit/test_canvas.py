import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelkit.canvas import RESAMPLING, draw
from modelkit.framing import Frame, FrameRequest, frame

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def whole(width: int, height: int, size: tuple[int, int]) -> Frame:
    return Frame(0, 0, width, height, size)


def test_a_frame_of_whole_pixels_is_cut_without_resampling() -> None:
    made = draw(Image.fromarray(NOISE), Frame(10, 5, 20, 30, (20, 30)))
    assert (np.asarray(made) == NOISE[5:35, 10:30]).all()


def test_padding_loses_no_pixel() -> None:
    made = np.asarray(draw(Image.fromarray(NOISE), Frame(-7, -3, 80, 50, (80, 50))))
    assert made.shape == (50, 80, 3)
    assert (made[3:43, 7:67] == NOISE).all()


def test_padding_takes_the_edges_colour() -> None:
    plain = np.full((40, 60, 3), (200, 180, 160), np.uint8)
    plain[10:30, 20:40] = (10, 20, 30)
    made = np.asarray(draw(Image.fromarray(plain), Frame(-20, -20, 100, 80, (100, 80))))
    made = made.copy()
    made[30:50, 40:60] = (200, 180, 160)
    assert (made == (200, 180, 160)).all()


def test_padding_goes_on_with_a_background_that_shades_off() -> None:
    shade = np.repeat(np.linspace(180, 220, 40).astype(np.uint8)[:, None, None], 60, 1).repeat(3, 2)
    made = np.asarray(draw(Image.fromarray(shade), Frame(-30, 0, 120, 40, (120, 40)))).astype(int)
    assert np.abs(made[:, :30] - shade[:, :1]).max() <= 3
    assert np.abs(made[:, 90:] - shade[:, :1]).max() <= 3


def test_padding_of_a_busy_edge_is_one_calm_colour() -> None:
    made = np.asarray(draw(Image.fromarray(NOISE), Frame(-20, 0, 100, 40, (100, 40))))
    assert (made[:, :20] == made[0, 0]).all()


def test_a_transparent_image_is_padded_transparently_and_keeps_its_colours() -> None:
    cut = np.zeros((20, 20, 4), np.uint8)
    cut[5:15, 5:15] = (250, 0, 0, 255)
    made = draw(Image.fromarray(cut), Frame(-10, -10, 40, 40, (80, 80)))
    pixels = np.asarray(made)
    assert made.mode == "RGBA"
    assert pixels[0, 0, 3] == 0
    seen = pixels[pixels[..., 3] > 128]
    assert (np.abs(seen[:, :3].astype(int) - (250, 0, 0)) <= 6).all()  # no dark fringe from hidden black


def test_an_opaque_edge_of_a_transparent_image_is_padded_opaquely() -> None:
    pixels = np.full((20, 20, 4), 255, np.uint8)
    pixels[8:12, 8:12] = 0
    made = np.asarray(draw(Image.fromarray(pixels), Frame(-5, 0, 30, 20, (30, 20))))
    assert (made[:, :5] == 255).all()


@pytest.mark.parametrize("resampling", sorted(RESAMPLING))
def test_every_filter_resizes_to_the_exact_size(resampling: str) -> None:
    assert draw(Image.fromarray(NOISE), whole(60, 40, (33, 77)), resampling).size == (33, 77)


@settings(max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["auto", "crop", "pad", "scale"]),
    st.none() | st.floats(0.1, 10),
    st.tuples(st.integers(16, 200), st.integers(16, 200)),
    st.booleans(),
)
def test_a_result_has_exactly_its_frames_size(
    width: int, height: int, mode: str, aspect: float | None, size: tuple[int, int], alpha: bool
) -> None:
    image = Image.new("RGBA" if alpha else "RGB", (width, height), (9, 90, 200))
    wanted = FrameRequest(mode, aspect=aspect, size=None if aspect else size)  # type: ignore[arg-type] # one of the four
    found = frame(image.size, wanted)
    if found is None:
        return
    made = draw(image, found)
    assert made.size == found.size
    if aspect is None:
        assert made.size == size
    assert (np.asarray(made.convert("RGB")) == (9, 90, 200)).all()
