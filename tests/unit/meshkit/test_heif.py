"""HEIC pictures at the one door for images."""

import io
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from meshkit.errors import MeshError
from meshkit.images import heif
from meshkit.images.colours import make_for_work
from meshkit.images.decoding import MoreNeededError, inspect
from meshkit.images.limits import FORMATS, ImageGrant, ImageInfo, ImageLimits
from meshkit.images.thumbnails import make_thumbnail
from tests.heif import claiming, heic, original, shown

NAMES = ("portrait", "turned", "ten-bit", "album")


def made(data: bytes) -> Image.Image:
    out = io.BytesIO()
    assert make_for_work(data, out).made
    return shown(out.getvalue())


def refusal(work: Any, *args: Any) -> tuple[str, str]:
    with pytest.raises(MeshError) as caught:
        work(*args)
    [violation] = caught.value.violations
    return violation.type, violation.message


def difference(one: Image.Image, other: Image.Image) -> float:
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_is_what_it_was_upright_in_eight_bits(name: str) -> None:
    assert inspect(heic(name)) == ImageInfo("HEIF", 220, 256, 1)
    picture = made(heic(name))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (220, 256))
    assert difference(picture, original()) < 6, "turned twice, cut or pale it would differ by 30 and more"


def test_what_is_transparent_stays_so() -> None:
    picture = made(heic("alpha"))
    assert (picture.mode, picture.size) == ("RGBA", (110, 128))
    top, foot = (picture.getchannel("A").getpixel((50, y)) for y in (4, 124))
    assert isinstance(top, int)
    assert isinstance(foot, int)
    assert top < 20
    assert foot > 235


def test_a_thumbnail_is_made_of_the_picture() -> None:
    out = io.BytesIO()
    make_thumbnail(heic("turned"), out, 110)
    assert difference(shown(out.getvalue()).convert("RGB"), original().resize((110, 128))) < 10


def test_limits_hold() -> None:
    assert refusal(inspect, heic(), ImageLimits(max_pixels=56_319))[0] == "image_size"
    assert inspect(heic(), ImageLimits(max_pixels=56_320)).width == 220
    assert refusal(inspect, heic(), ImageLimits(max_side=255))[0] == "image_size"
    assert refusal(inspect, heic(), ImageLimits(formats=("JPEG", "AVIF")))[0] == "image_format"
    with pytest.raises(MoreNeededError) as caught:
        inspect(heic(), grant=ImageGrant(1_000_000, 1 << 40))
    assert caught.value.bytes == 220 * 256 * 24 + 2 * len(heic())
    with pytest.raises(MoreNeededError):
        inspect(heic(), grant=ImageGrant(10_000, 1 << 40))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (40_000, 10), (8193, 8192)])
def test_one_that_claims_to_be_enormous_is_refused_by_its_header(width: int, height: int) -> None:
    assert refusal(inspect, claiming(width, height))[0] in {"image_size", "image_broken"}


@pytest.mark.parametrize("size", [(64, 64), (2000, 2000), (0, 0)])
def test_one_that_is_not_as_large_as_it_claims_is_refused(size: tuple[int, int]) -> None:
    assert refusal(inspect, claiming(*size))[0] in {"image_size", "image_broken"}


def test_every_part_of_a_photo_is_refused() -> None:
    for name in NAMES:
        data = heic(name)
        for end in [*range(0, 700, 7), *range(700, len(data), 97), len(data) - 1]:
            assert refusal(inspect, data[:end])[0] in {"image_format", "image_broken", "image_size"}


def test_what_is_told_by_the_first_bytes() -> None:
    def head(*brands: bytes) -> bytes:
        return (8 + 4 * (len(brands) + 1)).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])

    for brands in ([b"heic"], [b"heix", b"mif1"], [b"mif1", b"heic"], [b"mif1", b"miaf"], [b"1pic", b"heic"]):
        assert heif.is_heif(head(*brands))
    for brands in ([b"avif", b"mif1"], [b"mif1", b"avif", b"miaf"], [b"qt  "], [b"isom", b"mp42"]):
        assert not heif.is_heif(head(*brands))
    assert not heif.is_heif(b"\xff\xd8\xff\xe0")


def test_an_avif_goes_on_being_one() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "AVIF")
    assert inspect(out.getvalue()).format == "AVIF"
    # Some encoders name the container first.
    other = out.getvalue()[:8] + b"mif1" + out.getvalue()[12:]
    assert inspect(other).format == "AVIF"


def test_without_the_library_a_photo_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    kind, message = refusal(inspect, heic())
    assert kind == "image_format"
    assert "the package pillow-heif, which decodes these, is not installed" in message
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    assert inspect(out.getvalue()).format == "PNG"


def test_the_library_is_loaded_for_its_pictures_alone() -> None:
    code = (
        "import io, sys; from PIL import Image; from meshkit.images.decoding import inspect\n"
        "for kind in ('PNG', 'JPEG', 'AVIF'):\n"
        "    out = io.BytesIO(); Image.new('RGB', (8, 8)).save(out, kind); inspect(out.getvalue())\n"
        "assert 'pillow_heif' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert "HEIF" in FORMATS
