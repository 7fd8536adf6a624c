"""Images of every kind, as they are made for work: upright, sRGB, eight bits a channel."""

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from meshkit.config import MeshSettings
from meshkit.errors import MeshError
from meshkit.images import decoding
from meshkit.images.colours import make_for_work
from meshkit.images.decoding import inspect
from meshkit.images.limits import DEFAULT_LIMITS
from modelkit.framing import FrameRequest, frame
from modelkit.pictures import open_picture


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, depth: int, colour: int, rows: list[bytes], *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + pixels + chunk(b"IEND", b"")


def swapped_profile() -> bytes:
    """A profile in which red is green and green is red: nobody can overlook whether it counts."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(raw[place : place + 4]): place
        for place in range(132, 132 + 12 * struct.unpack(">I", raw[128:132])[0], 12)
    }
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    raw[red + 4 : red + 12], raw[green + 4 : green + 12] = raw[green + 4 : green + 12], raw[red + 4 : red + 12]
    return bytes(raw)


def icc(space: bytes, *tags: tuple[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """A profile by hand, of the tags that matter."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    entries, body = b"", b""
    start = 132 + 12 * (len(tags) + 3)
    for name, data in (*tags, (b"desc", text), (b"cprt", b"text" + bytes(4) + b"none\0"), (b"wtpt", white)):
        padded = data + bytes(-len(data) % 4)
        entries += name + struct.pack(">II", start + len(body), len(data))
        body += padded
    head = bytearray(128)
    head[4:8], head[8:12], head[12:16] = b"lcms", bytes([2, 0x40, 0, 0]), kind
    head[16:20], head[20:24], head[36:40] = space, b"XYZ " if kind == b"mntr" else b"Lab ", b"acsp"
    head[68:80] = struct.pack(">iii", 63190, 65536, 54061)
    table = struct.pack(">I", len(tags) + 3) + entries
    head[0:4] = struct.pack(">I", 128 + len(table) + len(body))
    return bytes(head) + table + body


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">I", 1) + struct.pack(">H", round(gamma * 256)) + bytes(2)
    return icc(b"GRAY", (b"kTRC", curve))


def cmyk_profile() -> bytes:
    """A press whose every ink alone is a Lab colour of its own: more ink of any kind is darker."""
    head = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">iiiiiiiii", *(65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    )
    curves = bytes(range(256)) * 4
    grid = b""
    for corner in range(16):
        inks = corner.bit_count()
        grid += bytes([max(0, 255 - 120 * inks), 128, 128])
    return icc(b"CMYK", (b"A2B0", head + curves + grid + bytes(range(256)) * 3), kind=b"prtr")


def worked(data: bytes) -> tuple[Image.Image, str]:
    """The picture as a handler opens it, and what was left aside."""
    out = io.BytesIO()
    work = make_for_work(data, out)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        path.write_bytes(out.getvalue() if work.made else data)
        return open_picture(path), work.note


def made(data: bytes) -> bool:
    return make_for_work(data, io.BytesIO()).made


def near(pixel: Any, wanted: tuple[int, ...], by: int = 3) -> bool:
    return len(pixel) == len(wanted) and max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= by


# -- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_with_a_profile_shows_in_srgb(kind: str) -> None:
    data = saved(Image.new("RGB", (32, 32), (250, 10, 10)), kind, icc_profile=swapped_profile())
    picture, note = worked(data)
    assert near(picture.getpixel((16, 16)), (10, 250, 10), 12), picture.getpixel((16, 16))
    assert not picture.info.get("icc_profile")
    assert not note


def test_crop_and_pad_show_the_same_colour() -> None:
    picture, _ = worked(saved(Image.new("RGB", (96, 96), (250, 10, 10)), icc_profile=swapped_profile()))
    seen = set()
    for mode in ("crop", "pad"):
        found = frame(picture.size, FrameRequest(mode=mode, aspect=1.5))
        assert found is not None
        box = (int(found.left), int(found.top), int(found.left + found.width), int(found.top + found.height))
        cut = picture.crop(box)
        seen.add(cut.getpixel((cut.width // 2, cut.height // 2)))
    assert len(seen) == 1
    assert near(seen.pop(), (10, 250, 10), 12)


def test_transparency_survives_a_profile() -> None:
    image = Image.new("RGBA", (8, 8), (250, 10, 10, 255))
    image.putpixel((0, 0), (250, 10, 10, 90))
    picture, _ = worked(saved(image, icc_profile=swapped_profile()))
    assert picture.mode == "RGBA"
    assert near(picture.getpixel((0, 0)), (10, 250, 10, 90), 12)
    assert near(picture.getpixel((4, 4)), (10, 250, 10, 255), 12)


@pytest.mark.parametrize(("gamma", "wanted"), [(1.0, 188), (2.2, 128)])
def test_a_grey_profile_counts(gamma: float, wanted: int) -> None:
    picture, note = worked(saved(Image.new("L", (8, 8), 128), icc_profile=grey_profile(gamma)))
    assert not note
    assert near(picture.getpixel((0, 0)), (wanted,) * 3, 4), picture.getpixel((0, 0))


@pytest.mark.parametrize("mode", ["L", "P", "LA"])
def test_a_colour_profile_on_greys_and_palettes_counts(mode: str) -> None:
    picture, note = worked(
        saved(Image.new("RGB", (8, 8), (100, 100, 100)).convert(mode), icc_profile=swapped_profile())
    )
    assert not note
    assert picture.mode == "RGB"


def test_a_press_profile_counts() -> None:
    profile = cmyk_profile()
    paper, note = worked(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF", icc_profile=profile))
    assert not note
    ink, note = worked(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF", icc_profile=profile))
    assert not note
    assert near(paper.getpixel((0, 0)), (255, 255, 255), 10)
    # L* of 135/255 is a grey of 126, where plain cyan would have no red.
    assert near(ink.getpixel((0, 0)), (126, 126, 126), 8), ink.getpixel((0, 0))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_without_a_profile_are_colours(kind: str) -> None:
    picture, note = worked(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind))
    assert near(picture.getpixel((0, 0)), (255, 0, 0), 6)
    assert not note


@pytest.mark.parametrize(
    ("profile", "note"),
    [
        (b"nothing", "colour_profile_broken"),
        (bytes(300), "colour_profile_broken"),
        (swapped_profile()[:400], "colour_profile_broken"),
        (cmyk_profile(), "colour_profile_of_another_space"),
        (grey_profile(1.8), "colour_profile_of_another_space"),
    ],
    ids=["nothing", "zeros", "cut", "press", "grey"],
)
def test_a_broken_profile_is_left_aside_and_noted(profile: bytes, note: str) -> None:
    picture, noted = worked(saved(Image.new("RGB", (8, 8), (250, 10, 10)), icc_profile=profile))
    assert picture.getpixel((0, 0)) == (250, 10, 10)
    assert noted == note


def test_lab_is_read() -> None:
    picture, _ = worked(saved(Image.new("LAB", (8, 8), (128, 128, 128)), "TIFF"))
    assert near(picture.getpixel((0, 0)), (119, 119, 119), 12), picture.getpixel((0, 0))


# -- depth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("level", "wanted"), [(0, 0), (32768, 128), (65535, 255), (257, 1)])
def test_levels_of_16_bits_are_scaled(kind: str, level: int, wanted: int) -> None:
    picture, _ = worked(saved(Image.new("I;16", (8, 8), level), kind))
    assert picture.getpixel((0, 0)) == (wanted,) * 3


@pytest.mark.parametrize(
    ("pixels", "wanted"),
    [
        ((0.0, 0.5, 1.0), (0, 128, 255)),
        ((0.0, 0.25, 1.7), (0, 64, 255)),  # lights beyond white
        ((-3.0, 0.5, 0.9), (0, 128, 230)),
        ((0.0, 128.0, 255.0), (0, 128, 255)),
        ((0.0, 32768.0, 65535.0), (0, 128, 255)),
        ((0.0, 500_000.0, 1_000_000.0), (0, 128, 255)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
    ],
)
def test_numbers_with_a_fraction_are_levels(pixels: tuple[float, ...], wanted: tuple[int, ...]) -> None:
    image = Image.new("F", (3, 1))
    image.putdata(pixels)
    picture, _ = worked(saved(image, "TIFF"))
    found = [picture.getpixel((x, 0))[0] for x in range(3)]  # type: ignore[index] # a pixel of three levels
    assert near(found, wanted, 1), found


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_break_nothing(odd: float) -> None:
    image = Image.new("F", (3, 1), 0.5)
    image.putpixel((0, 0), odd)
    picture, _ = worked(saved(image, "TIFF"))
    assert picture.size == (3, 1)


@pytest.mark.parametrize(("levels", "wanted"), [((0, 100, 255), (0, 100, 255)), ((0, 32768, 65535), (0, 128, 255))])
def test_levels_of_32_bits_are_scaled(levels: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    image = Image.new("I", (3, 1))
    image.putdata(levels)
    picture, _ = worked(saved(image, "TIFF"))
    assert near([picture.getpixel((x, 0))[0] for x in range(3)], wanted, 1)  # type: ignore[index] # as above


# -- a colour that stands for transparency -------------------------------------------------------------------------


def alphas(picture: Image.Image) -> list[int]:
    rgba = picture.convert("RGBA")
    return [rgba.getpixel((x, 0))[3] for x in range(rgba.width)]  # type: ignore[index] # a pixel of four levels


def test_a_level_of_16_bits_is_transparent_alone() -> None:
    row = b"".join(struct.pack(">H", level) for level in (0, 256, 257, 511, 65535))
    picture, _ = worked(png(5, 16, 0, [row], chunk(b"tRNS", struct.pack(">H", 256))))
    assert alphas(picture) == [255, 0, 255, 255, 255]


@pytest.mark.parametrize(
    ("depth", "row", "key"), [(1, b"\x50", 0), (2, b"\x1b", 1), (4, b"\x05\xaf", 5), (8, b"\0\5\xff\7", 5)]
)
def test_a_level_of_few_bits_is_transparent_alone(depth: int, row: bytes, key: int) -> None:
    picture, _ = worked(png(4, depth, 0, [row], chunk(b"tRNS", struct.pack(">H", key))))
    levels = [(int.from_bytes(row, "big") >> (len(row) * 8 - depth * (x + 1))) & ((1 << depth) - 1) for x in range(4)]
    assert alphas(picture) == [0 if level == key else 255 for level in levels]


def test_a_colour_of_16_bits_is_transparent_alone() -> None:
    colours = [(256, 0, 0), (257, 0, 0), (1, 0, 0), (256, 0, 1)]
    row = b"".join(struct.pack(">HHH", *colour) for colour in colours)
    picture, _ = worked(png(4, 16, 2, [row], chunk(b"tRNS", struct.pack(">HHH", 256, 0, 0))))
    assert alphas(picture) == [0, 255, 255, 255]


def test_a_colour_of_8_bits_and_a_palette_entry_are_transparent() -> None:
    picture, _ = worked(png(2, 8, 2, [bytes([1, 2, 3, 1, 2, 4])], chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert alphas(picture) == [0, 255]
    palette = chunk(b"PLTE", bytes([9, 9, 9, 200, 0, 0]))
    picture, _ = worked(png(2, 8, 3, [bytes([0, 1])], palette, chunk(b"tRNS", bytes([128]))))
    assert alphas(picture) == [128, 255]


# -- turned --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_what_is_made_is_turned_once(kind: str, turn: int) -> None:
    image = Image.new("I;16", (3, 2))
    for place in range(6):
        image.putpixel((place % 3, place // 3), place * 10_000)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture, _ = worked(saved(image, kind, exif=exif))
    corner = {1: 0, 2: 2, 3: 5, 4: 3, 5: 0, 6: 3, 7: 5, 8: 2}[turn]
    assert picture.size == ((3, 2) if turn < 5 else (2, 3))
    assert near(picture.getpixel((0, 0)), (round(corner * 10_000 / 257),) * 3, 1)


def test_a_photo_whose_exif_cannot_be_read_is_a_photo() -> None:
    data = saved(Image.new("RGB", (8, 4), (1, 2, 3)), "JPEG", exif=b"Exif\0\0MMnothing")
    picture, _ = worked(data)
    assert picture.size == (8, 4)


# -- what is fit as it stands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_plain_pictures_stay_as_they_are(mode: str) -> None:
    assert not made(saved(Image.new("RGB", (8, 8), (1, 2, 3)).convert(mode)))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_plain_photos_stay_as_they_are(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert not made(saved(Image.new("RGB", (8, 4), (1, 2, 3)), kind, exif=exif))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_become_png_for_work(kind: str) -> None:
    out = io.BytesIO()
    assert make_for_work(saved(Image.new("RGB", (8, 8), (1, 2, 3)), kind), out).made
    assert inspect(out.getvalue()).format == "PNG"


def test_the_first_frame_is_made_and_all_are_checked() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture, _ = worked(data)
    assert near(picture.getpixel((0, 0)), (255, 0, 0))
    with pytest.raises(MeshError):
        make_for_work(data[:-60], io.BytesIO())


def test_what_the_limits_let_pass_fits_into_the_memory_of_a_service() -> None:
    most = (max(decoding._BYTES_PER_PIXEL.values()) + decoding._WORK_BYTES_PER_PIXEL) * DEFAULT_LIMITS.max_pixels
    assert most <= MeshSettings.model_fields["image_memory_bytes"].default
    assert set(decoding._BYTES_PER_PIXEL) == set(DEFAULT_LIMITS.formats)


# -- parts that change no pixel ------------------------------------------------------------------------------------


def test_a_photo_with_a_second_picture_is_a_jpeg() -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (32, 24), (30, 30, 200))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    info = inspect(data)
    assert (info.format, info.content_type, info.frames) == ("JPEG", "image/jpeg", 1)
    picture, _ = worked(data)
    assert picture.size == (64, 48)


def test_a_large_profile_is_no_damage() -> None:
    profile = bytes(128) + b"".join(struct.pack(">H", (place * 7) & 0xFFFF) for place in range(700_000))
    data = png(1, 8, 2, [b"\1\2\3"], chunk(b"iCCP", b"display\0\0" + zlib.compress(profile)))
    assert inspect(data).width == 1
    picture, note = worked(data)
    assert picture.getpixel((0, 0)) == (1, 2, 3)
    assert note == "colour_profile_broken"


@pytest.mark.parametrize(
    "part",
    [
        chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(40 * 1024 * 1024))),
        chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(40 * 1024 * 1024))),
        chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(40 * 1024 * 1024))),
        chunk(b"iCCP", b"no end"),
        chunk(b"tEXt", b"key\0\xff\xfe"),
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""),
        chunk(b"eXIf", b"MM"),
        chunk(b"tIME", bytes(7)),
        chunk(b"prVt", b"private"),
    ],
    ids=lambda part: bytes(part[4:8]).decode() if isinstance(part, bytes) else None,
)
def test_a_damaged_part_that_changes_no_pixel_is_left_aside(part: bytes) -> None:
    data = png(1, 8, 2, [b"\1\2\3"], part)
    assert inspect(data).width == 1
    picture, _ = worked(data)
    assert picture.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"iCCP", b"eXIf"])
def test_a_wrong_checksum_of_a_part_that_changes_no_pixel_is_taken(kind: bytes) -> None:
    part = bytearray(chunk(kind, b"a\0\0\0\1\0\0\0\1"))
    part[-1] ^= 1
    data = png(1, 8, 2, [b"\1\2\3"], bytes(part))
    assert inspect(data).width == 1
    picture, _ = worked(data)
    assert picture.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE", b"tRNS"])
def test_a_wrong_checksum_of_a_part_that_matters_is_damage(kind: bytes) -> None:
    parts = chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes([0]))
    data = bytearray(png(2, 8, 3, [b"\0\1"], *parts))
    data[data.find(kind) + 4] ^= 1
    with pytest.raises(MeshError) as caught:
        inspect(bytes(data))
    assert caught.value.violations[0].type in {"image_broken", "image_format"}
