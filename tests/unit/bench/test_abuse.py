"""What the table of misuse is made of."""

import io

import pytest
from PIL import Image

from bench import abuse


def test_pictures_are_small_files_that_a_decoder_would_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abuse, "_SIDE", 64)
    plain = abuse._riff(abuse._webp_image())
    animated = abuse._animated_webp(abuse._webp_image(), frames=4)
    with Image.open(io.BytesIO(plain)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
        picture.load()
    with Image.open(io.BytesIO(animated)) as picture:
        assert (picture.format, picture.size, getattr(picture, "n_frames", 1)) == ("WEBP", (64, 64), 4)
        picture.seek(3)
        picture.load()
    assert len(animated) < 1_000


def test_each_row_has_a_name_of_its_own_and_a_wait_that_is_measured() -> None:
    names = [row.name for row in abuse._ROWS]
    assert len(set(names)) == len(names) >= 8
    assert {row.probe for row in abuse._ROWS} <= {"done", "webhook", "stream"}
