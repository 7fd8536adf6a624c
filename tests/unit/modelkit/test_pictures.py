from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelkit.errors import ModelError
from modelkit.pictures import jpeg_quality, open_picture, over_white


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type] # Pillow's options are open
    return path


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.new("RGB", (4, 4), 9), "RGB"),
        (Image.new("L", (4, 4), 9), "RGB"),
        (Image.new("P", (4, 4), 9), "RGB"),
        (Image.new("1", (4, 4), 1), "RGB"),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 255)), "RGB"),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 40)), "RGBA"),
        (Image.new("LA", (4, 4), (1, 40)), "RGBA"),
    ],
)
def test_every_kind_of_image_becomes_rgb_or_rgba(tmp_path: Path, image: Image.Image, mode: str) -> None:
    assert open_picture(save(tmp_path / "a.png", image)).mode == mode


def test_colours_for_print_become_rgb(tmp_path: Path) -> None:
    assert open_picture(save(tmp_path / "a.tiff", Image.new("CMYK", (4, 4)))).getpixel((0, 0)) == (255, 255, 255)


def test_deep_greys_are_scaled(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    made = np.asarray(open_picture(save(tmp_path / "a.png", deep)))
    assert abs(int(made[0, 0, 0]) - 40_000 // 257) <= 1


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(save(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=exif)).size == (4, 8)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="could not be read"):
        open_picture(path)


@pytest.mark.parametrize("hidden", [(0, 0, 0, 0), (255, 0, 255, 0)])
def test_a_transparent_picture_lies_over_white(hidden: tuple[int, ...]) -> None:
    image = Image.new("RGBA", (4, 4), hidden)
    image.putpixel((0, 0), (200, 40, 40, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    flat = over_white(image)
    assert flat.mode == "RGB"
    assert [flat.getpixel((x, 0)) for x in range(3)] == [(200, 40, 40), (127, 127, 127), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opaque_picture_stays_as_it_is(mode: str) -> None:
    assert over_white(Image.new("RGB", (4, 4), (9, 9, 9)).convert(mode)).getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("quality", [20, 50, 75, 92, 98])
def test_a_jpeg_tells_the_quality_it_was_compressed_at(tmp_path: Path, quality: int) -> None:
    file = save(tmp_path / "a.jpg", Image.new("RGB", (16, 16), "red"), quality=quality)
    assert jpeg_quality(file) == pytest.approx(quality, abs=2)


def test_what_is_no_jpeg_has_no_quality(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    assert jpeg_quality(save(tmp_path / "a.png", Image.new("RGB", (2, 2)))) is None
    assert jpeg_quality(tmp_path / "b") is None
