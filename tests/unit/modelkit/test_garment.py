from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit.garment import find_garment, part_of
from modelkit.vision import BodyPose, Subject, Vision

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"


class Looker:
    """Sees a person who fills columns 20 to 60 of 100 rows, from head to toe."""

    def __init__(self, kind: str | None = "person", seen: float = 1.0) -> None:
        self.kind, self.seen = kind, seen

    def subject(self, image: Image.Image) -> Subject | None:
        mask = np.zeros((image.height, image.width), bool)
        mask[5:95, 20:60] = True
        return None if self.kind is None else Subject((20, 5, 60, 95), mask, self.kind)  # type: ignore[arg-type] # a kind

    def pose(self, image: Image.Image) -> BodyPose | None:
        points = np.zeros((33, 2), np.float32)
        for place, row in ((11, 20), (12, 20), (23, 50), (24, 50), (27, 90), (28, 90)):
            points[place] = 40, row
        return BodyPose(points, np.full(33, self.seen, np.float32), np.zeros(33, np.float32), 1.0)


class Cutter:
    def __init__(self, *, finds: bool = True) -> None:
        self.finds = finds

    def matte(self, image: Image.Image) -> np.ndarray | None:
        matte = np.zeros((image.height, image.width), np.float32)
        matte[30:40, 30:50] = 1
        return matte if self.finds else None


IMAGE = Image.new("RGB", (80, 100))


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("tshirt", "upper"), ("T-Shirt", "upper"), ("a blue shirt", "upper"), ("pants", "lower"), ("jeans", "lower"),
        ("dress", "whole"), ("logos", "whole"), ("", "whole"), ("shirt and pants", "whole"), ("Kleid", "whole"),
    ],
)  # fmt: skip
def test_a_label_says_which_part_of_a_body_is_meant(label: str, part: str) -> None:
    assert part_of(label) == part


@pytest.mark.parametrize(
    ("label", "box"), [("shirt", (20, 14, 60, 56)), ("pants", (20, 44, 60, 90)), ("dress", (20, 14, 60, 90))]
)
def test_a_worn_garment_is_between_the_joints_of_who_wears_it(label: str, box: tuple[int, ...]) -> None:
    garment = find_garment(IMAGE, label, Looker(), Cutter())
    assert garment.box == box
    assert garment.mask[box[1] : box[3], 20:60].all()
    assert garment.mask.sum() == (box[3] - box[1]) * 40


def test_a_body_that_is_not_seen_well_counts_as_a_whole() -> None:
    assert find_garment(IMAGE, "shirt", Looker(seen=0.2), Cutter()).box == (20, 5, 60, 95)


def test_a_packshot_is_its_outline_whatever_its_label() -> None:
    assert find_garment(IMAGE, "pants", Looker("object"), Cutter()).box == (20, 5, 60, 95)


def test_what_stands_out_is_found_by_the_other_network_and_else_it_is_all() -> None:
    assert find_garment(IMAGE, "shirt", Looker(None), Cutter()).box == (30, 30, 50, 40)
    assert find_garment(IMAGE, "shirt", Looker(None), Cutter(finds=False)).box == (0, 0, 80, 100)


def test_the_suit_of_a_real_photo_is_found_below_the_face() -> None:
    with Image.open(PHOTO) as photo:
        garment = find_garment(photo.convert("RGB"), "shirt", Vision(1), Cutter())
    left, top, right, bottom = garment.box
    assert 70 < top < 115
    assert bottom > 240
    assert right - left > 130
    assert garment.mask[200, 100]


def test_the_empty_and_the_plain_are_a_garment_of_their_size() -> None:
    for size in ((1, 1), (1, 30), (40, 2)):
        garment = find_garment(Image.new("RGB", size), "", Vision(1), Cutter(finds=False))
        assert garment.box == (0, 0, *size)


def test_a_standing_figure_has_no_pose(vision: Vision) -> None:
    image = Image.new("RGB", (200, 200), (220, 220, 220))
    ImageDraw.Draw(image).rectangle((60, 40, 140, 180), fill=(30, 60, 160))
    assert vision.pose(image) is None


def test_a_persons_joints_are_where_they_are(vision: Vision) -> None:
    with Image.open(PHOTO) as photo:
        pose = vision.pose(photo.convert("RGB"))
    assert pose is not None
    assert pose.points[0] == pytest.approx((108, 62), abs=10)  # the nose
    assert pose.points[11] == pytest.approx((150, 117), abs=15)
    assert pose.points[12] == pytest.approx((59, 110), abs=15)
    assert pose.seen[[0, 11, 12]].min() > 0.9


@pytest.fixture(scope="module")
def vision() -> Vision:
    return Vision(1)
