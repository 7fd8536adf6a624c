"""Framing and view follow from where joints lie; what they do not tell stays None."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelkit import shots
from modelkit.shots import framing_of, judge, view_of
from modelkit.vision import BodyPose, Face, Vision

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"
SIZE = (400, 800)
# Heights of nose, shoulders, hips, knees and ankles of somebody who stands, in shares of the picture.
STANDING = (0.15, 0.25, 0.5, 0.7, 0.9)


def body(
    heights: Sequence[float] = STANDING, *, turned: float = 0.0, score: float = 1.0, at: float = 200.0, scale: float = 1
) -> BodyPose:
    """Somebody whose body is turned by so many degrees from the camera."""
    points, seen, depth = np.zeros((33, 2), np.float32), np.ones(33, np.float32), np.zeros(33, np.float32)
    across, behind = np.cos(np.radians(turned)), np.sin(np.radians(turned))
    points[0] = (at, heights[0] * SIZE[1])
    for index, half in {7: 20, 11: 60, 23: 40, 25: 40, 27: 40}.items():
        row = heights[{7: 0, 11: 1, 23: 2, 25: 3, 27: 4}[index]] * SIZE[1]
        for joint, side in ((index, 1), (index + 1, -1)):
            points[joint] = (at + side * half * across * scale, row)
            depth[joint] = side * half * behind
    return BodyPose(points, seen, depth, score)


def moved(down: float, times: float) -> tuple[float, ...]:
    """Heights of somebody who stands lower and larger in the picture."""
    return tuple(height * times + down for height in STANDING)


@dataclass
class Finder:
    """Finds what the test says."""

    people: Sequence[BodyPose] = ()
    seen: Sequence[Face] = ()
    close: Sequence[BodyPose] = ()

    def faces(self, image: Image.Image) -> Sequence[Face]:
        return self.seen

    def poses(self, image: Image.Image) -> Sequence[BodyPose]:
        return self.people if image.size == SIZE else self.close

    def likelihood(self, image: Image.Image) -> float:
        return 0.3


@pytest.mark.parametrize(
    ("heights", "framing"),
    [
        (STANDING, "full_body"),
        (moved(0.0, 1.3), "three_quarter_upper"),
        (moved(0.0, 1.6), "three_quarter_upper"),
        (moved(0.0, 2.1), "upper_body"),
        (moved(-0.1, 4.2), "close_up"),
        (moved(-0.9, 2.0), "lower_body"),
        (moved(-0.3, 1.4), "three_quarter_lower"),
    ],
)
def test_framing_is_where_the_edges_cut_the_body(heights: Sequence[float], framing: str) -> None:
    found = framing_of(body(heights), SIZE)
    assert found is not None
    assert found[0] == framing
    assert 0.5 <= found[1] <= 1


def test_a_body_that_lies_has_no_framing() -> None:
    pose = body()
    lying = BodyPose(pose.points[:, ::-1].copy(), pose.seen, pose.depth, pose.score)
    assert framing_of(lying, (800, 400)) is None


def test_feet_that_are_hidden_are_no_full_body() -> None:
    pose = body()
    pose.seen[[27, 28]] = 0.1
    assert framing_of(pose, SIZE) is None


def test_a_trunk_without_head_and_legs_has_no_framing() -> None:
    assert framing_of(body(moved(-0.5, 2.8)), SIZE) is None


@pytest.mark.parametrize(
    ("turned", "view"), [(0, "front"), (-40, "front"), (70, "side"), (-90, "side"), (180, "back"), (130, "back")]
)
def test_the_view_is_how_far_the_body_is_turned(turned: float, view: str) -> None:
    found = view_of(body(turned=turned), SIZE, has_face=False)
    assert found is not None
    assert found[0] == view


def test_a_face_on_a_back_is_no_view() -> None:
    assert view_of(body(turned=180), SIZE, has_face=True) is None


def test_everybody_is_counted_once() -> None:
    one, other = body(at=100.0), body(at=300.0)
    again = body(at=104.0, score=0.7)
    face = Face((80.0, 90.0, 120.0, 150.0), 0.95)  # of the first
    alone = Face((10.0, 400.0, 30.0, 430.0), 0.9)
    by_chance = Face((350.0, 700.0, 380.0, 740.0), 0.6)
    shot = judge(Image.new("RGB", SIZE), Finder([one, other, again], [face, alone, by_chance]))
    assert shot.people == 3
    assert shot.presence == 1.0
    assert shot.framing == "full_body"


def test_the_nearest_person_is_the_one_that_counts() -> None:
    far = body(tuple(height / 3 for height in STANDING), turned=180)
    near = body(moved(0.0, 1.6), at=300.0, score=0.8)
    shot = judge(Image.new("RGB", SIZE), Finder([far, near]))
    assert (shot.framing, shot.view) == ("three_quarter_upper", "front")


def test_a_face_without_a_body_is_looked_at_by_itself() -> None:
    face = Face((180.0, 100.0, 220.0, 160.0), 0.9)
    # The window begins 90 pixels above the face, at the picture's edge.
    shot = judge(Image.new("RGB", SIZE), Finder((), [face], close=[body()]))
    assert shot.people == 1
    assert (shot.framing, shot.view) == ("full_body", "front")


def test_a_face_whose_body_is_not_found_has_neither_framing_nor_view() -> None:
    shot = judge(Image.new("RGB", SIZE), Finder((), [Face((180.0, 100.0, 220.0, 160.0), 0.9)]))
    assert (shot.people, shot.presence) == (1, 0.9)
    assert (shot.framing, shot.view, shot.confidence) == (None, None, None)


def test_where_nobody_is_found_that_is_as_sure_as_the_networks_are() -> None:
    shot = judge(Image.new("RGB", SIZE), Finder())
    assert shot == shots.Shot(0, 0.7, None, None, None, collage=False)


def test_a_photo_is_judged() -> None:
    with Image.open(PHOTO) as photo:
        shot = judge(photo.convert("RGB"), Vision(1))
    assert (shot.people, shot.framing, shot.view, shot.collage) == (1, "upper_body", "front", False)
    assert shot.presence > 0.9
    assert shot.confidence is not None
    assert shot.confidence > 0.7


def test_a_picture_of_nobody_is_judged() -> None:
    shot = judge(Image.new("RGB", (320, 200), (120, 130, 140)), Vision(1))
    assert (shot.people, shot.framing, shot.view) == (0, None, None)
    assert shot.presence > 0.4
