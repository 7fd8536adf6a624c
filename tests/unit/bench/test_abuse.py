"""What the table of misuse is made of."""

import io

from PIL import Image

from bench.abuse import bombs
from bench.abuse.__main__ import ROW_MODULES
from bench.abuse.rows import ROWS


def test_pictures_are_small_files_that_a_decoder_would_read() -> None:
    image = bombs.webp_image(64)
    plain = bombs.riff(image)
    animated = bombs.animated_webp(image, frames=4, side=64)
    with Image.open(io.BytesIO(plain)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
        picture.load()
    with Image.open(io.BytesIO(animated)) as picture:
        assert (picture.format, picture.size, getattr(picture, "n_frames", 1)) == ("WEBP", (64, 64), 4)
        picture.seek(3)
        picture.load()
    assert len(animated) < 1_000


def test_each_row_has_a_name_of_its_own_and_a_wait_that_is_measured() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 18
    assert {row.probe for row in ROWS} == {"done", "webhook", "stream", "workflow"}
    assert {row.act.__module__ for row in ROWS} == {module.__name__ for module in ROW_MODULES}
