"""The losses of a training as a picture."""

import io
import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from PIL import Image

from services.training.curve import HEIGHT, WIDTH, as_png, as_svg, smoothed
from services.training.domain import LossRecord, ValidationRecord

LOSSES = [LossRecord(step, 0.2 + math.exp(-step / 300) + 0.3 * (step % 2)) for step in range(1, 1001)]
VALIDATION = [
    ValidationRecord(step, bucket, level + math.exp(-step / 300))
    for step in range(0, 1001, 100)
    for bucket, level in (("0.0-0.5", 0.2), ("0.5-1.0", 0.4))
]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_picture_names_its_lines_and_stays_in_its_frame(theme: str) -> None:
    # Made by this project: no foreign document is read.
    root = ET.fromstring(as_svg("a <b> & c", LOSSES, VALIDATION, theme))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"a <b> & c", "smoothed", "noise 0.0-0.5", "noise 0.5-1.0", "1000"} <= set(texts)
    for line in root.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_themes_differ_and_a_png_is_drawn_at_twice_the_size() -> None:
    light, dark = (Image.open(io.BytesIO(as_png("t", LOSSES, VALIDATION, one))) for one in ("light", "dark"))
    assert light.size == dark.size == (2 * WIDTH, 2 * HEIGHT)
    assert light.getpixel((2, 2)) == (255, 255, 255)
    assert dark.getpixel((2, 2)) != (255, 255, 255)


@pytest.mark.parametrize(
    ("losses", "validation"),
    [
        ([], []),
        ([LossRecord(1, 0.5)], []),
        ([], [ValidationRecord(0, "0.0-1.0", 0.5)]),
        ([LossRecord(1, math.nan), LossRecord(2, math.inf)], [ValidationRecord(0, "0.0-1.0", math.nan)]),
        ([LossRecord(1, 0.0), LossRecord(2, 0.0)], []),
        ([LossRecord(1, 1e-9), LossRecord(10**6, 1e9)], []),
    ],
)
def test_few_equal_and_broken_losses_make_a_picture_too(
    losses: list[LossRecord], validation: list[ValidationRecord]
) -> None:
    assert b"nan" not in as_svg("t", losses, validation, "light")
    assert as_png("t", losses, validation, "dark").startswith(b"\x89PNG")


def test_smoothing_begins_at_the_first_loss_and_follows_the_course() -> None:
    course = smoothed(LOSSES)
    assert course[0].loss == pytest.approx(LOSSES[0].loss)
    assert [one.step for one in course] == [one.step for one in LOSSES]
    jumps = [abs(one.loss - other.loss) for one, other in pairwise(course[100:])]
    assert max(jumps) < 0.03
    assert course[-1].loss == pytest.approx(0.2 + 0.15 + math.exp(-960 / 300), abs=0.05)
    assert smoothed([]) == []
