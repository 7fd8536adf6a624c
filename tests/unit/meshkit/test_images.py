import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from meshkit.errors import ErrorKind, MeshError
from meshkit.images.data import decode_data
from meshkit.images.decoding import inspect
from meshkit.images.limits import MAX_PIXELS, ImageInfo, ImageLimits
from modelkit.sizes import MAX_PIXELS as WORKED_ON


def encoded(
    kind: Any = "PNG", size: Any = (8, 6), mode: Any = "RGB", color: Any = (200, 10, 10), **options: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: Any, height: Any) -> bytes:
    """A few bytes that claim to be an enormous picture, with data that never ends up filling it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def refusal(work: Any, *args: Any, **options: Any) -> Any:
    with pytest.raises(MeshError) as caught:
        work(*args, **options)
    if caught.value.kind is ErrorKind.TOO_LARGE:
        return "too_large"
    assert caught.value.kind is ErrorKind.INVALID
    return caught.value.violations[0].type


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_known_formats_pass(kind: Any) -> None:
    assert inspect(encoded(kind)) == ImageInfo(kind, 8, 6, 1)


def float_rgb_tiff() -> bytes:
    """A TIFF of 2x2 pixels, three 32-bit float samples each, which Pillow has no mode for."""
    samples = struct.pack("<12f", *[0.5] * 12)
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 146)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, len(samples)), (339, 3, 3, 140)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + struct.pack("<I3H3H", 0, 32, 32, 32, 3, 3, 3) + samples


def test_a_tiff_of_float_colours_is_refused_by_the_name_of_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.tiff"
    file.write_bytes(float_rgb_tiff())
    for source in (float_rgb_tiff(), file, io.BytesIO(float_rgb_tiff())):
        with pytest.raises(MeshError) as caught:
            inspect(source)
        assert caught.value.violations[0].type == "image_format"
        assert "32-bit float" in caught.value.violations[0].message


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "SGI", "JPEG2000"])
def test_other_formats_are_refused(kind: Any) -> None:
    assert refusal(inspect, encoded(kind)) == "image_format"


@pytest.mark.parametrize(
    "data",
    [b"GIF89a", b"not an image", b"", b"%PDF-1.7", b"%!PS-Adobe-3.0", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
)  # fmt: skip
def test_what_is_no_image_is_refused(data: Any) -> None:
    assert refusal(inspect, data) in {"image_format", "image_broken"}


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (20_000, 5_000), (8193, 8192)])
def test_a_bomb_is_refused_by_its_header(width: Any, height: Any) -> None:
    assert refusal(inspect, png_claiming(width, height)) == "image_size"


def test_an_image_as_large_as_the_largest_result_is_decoded() -> None:
    """What it claims is taken; that it ends too soon is another matter."""
    assert refusal(inspect, png_claiming(8192, 8192)) == "image_broken"
    assert (MAX_PIXELS, WORKED_ON) == (8192 * 8192, 8192 * 8192), "what passes the door can be worked on"


def test_a_long_thin_image_is_refused() -> None:
    assert refusal(inspect, png_claiming(40_000, 10)) == "image_size"


def test_limits_are_the_callers() -> None:
    data = encoded(size=(100, 100))
    assert refusal(inspect, data, ImageLimits(max_pixels=9_999)) == "image_size"
    assert refusal(inspect, data, ImageLimits(max_bytes=10)) == "too_large"
    assert refusal(inspect, data, ImageLimits(formats=("JPEG",))) == "image_format"
    assert inspect(data, ImageLimits(max_pixels=10_000)).width == 100


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(kind: Any) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    data = buffer.getvalue()
    assert refusal(inspect, data[: len(data) * 2 // 3]) in {"image_broken", "image_format"}


def test_damaged_content_is_refused() -> None:
    data = bytearray(encoded(size=(64, 64)))
    data[60:70] = b"\xff" * 10
    assert refusal(inspect, bytes(data)) in {"image_broken", "image_format"}


def test_frames_are_counted_and_capped() -> None:
    frames = [Image.new("RGB", (4, 4), (20 * n, 0, 0)) for n in range(12)]
    for kind in ("GIF", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        assert inspect(buffer.getvalue()) == ImageInfo(kind, 4, 4, 12)
        assert refusal(inspect, buffer.getvalue(), ImageLimits(max_frames=11)) == "image_frames"
        assert refusal(inspect, buffer.getvalue(), ImageLimits(max_total_pixels=191)) == "image_size"


def test_a_later_page_may_not_be_larger_than_allowed() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (400, 400))])
    assert refusal(inspect, buffer.getvalue(), ImageLimits(max_pixels=10_000)) == "image_size"


def test_a_file_is_judged_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    assert inspect(path) == ImageInfo("PNG", 8, 6, 1)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "data:image/png;base64,",
        "data:;base64,",
        "DATA:image/png;charset=utf-8;BASE64,",
        "data:image/png;name=my%20photo.png;base64,",
        'data:image/png;name="a, b.png";base64,',
        "data:image/svg+xml;filename=a_b-c~d(1)'é.png;base64,",
        "data:base64;base64,",
    ],
)
def test_base64_is_decoded(prefix: Any) -> None:
    assert decode_data(prefix + base64.b64encode(b"abc").decode()) == b"abc"


def test_line_breaks_within_base64_are_fine() -> None:
    assert decode_data("YW\r\nJj\n") == b"abc"


@pytest.mark.parametrize("text", ["YWJ", "YW Jj", "!!!!", "YWJj=", "é", "", "data:image/png;base64,", "Y\0WJj"])
def test_broken_base64_is_refused(text: Any) -> None:
    assert refusal(decode_data, text) == "base64"


@pytest.mark.parametrize(
    "text", ["data:image/png,abc", "data:text/plain;base64", "data:base64,YWJj", f"data:{'a' * 2000};base64,YWJj"]
)
def test_a_data_url_without_base64_is_refused(text: Any) -> None:
    assert refusal(decode_data, text) == "data_url"


@pytest.mark.parametrize("body", ["YWI%2B", "YWI%2b", "%59%57%49%2B", "YWI%2B%0D%0A"])
def test_percent_signs_in_a_data_url_are_read(body: str) -> None:
    assert decode_data("data:image/png;base64," + body) == b"ab>"


@pytest.mark.parametrize("text", ["YWI%2B", "data:;base64,YWI%2", "data:;base64,YWI%", "data:;base64,YW%C3%A9"])
def test_percent_signs_elsewhere_are_no_base64(text: str) -> None:
    assert refusal(decode_data, text) == "base64"


def test_percent_signs_do_not_pass_the_bound() -> None:
    assert refusal(decode_data, "data:;base64," + "%41" * 4000, max_bytes=100) == "too_large"


def test_large_base64_is_refused_before_it_is_decoded() -> None:
    assert refusal(decode_data, "A" * 4000, max_bytes=100) == "too_large"
    assert len(decode_data(base64.b64encode(b"x" * 100).decode(), max_bytes=100)) == 100
    assert refusal(decode_data, base64.b64encode(b"x" * 101).decode(), max_bytes=100) == "too_large"


def test_errors_name_the_callers_member() -> None:
    with pytest.raises(MeshError) as caught:
        inspect(b"x", path="task.generation.image")
    assert caught.value.violations[0].path == "task.generation.image"
