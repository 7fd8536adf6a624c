from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit.errors import ModelError
from modelkit.framing import Frame, FrameRequest, Margins, Mode, frame, margins_of

SIZE = (200, 100)
SUBJECT = (80.0, 30.0, 120.0, 80.0)  # 40 x 50, margins .4 .3 .4 .2


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        # aspect alone: pixels stay what they are
        (FrameRequest("crop", aspect=1.0), Frame(50, 0, 100, 100, (100, 100))),
        (FrameRequest("pad", aspect=1.0), Frame(0, -50, 200, 200, (200, 200))),
        (FrameRequest("auto", aspect=1.0), Frame(0, -50, 200, 200, (200, 200))),
        (FrameRequest("auto", aspect=1.95), Frame(2, 0, 195, 100, (195, 100))),
        (FrameRequest("auto", aspect=2.05), Frame(0, 1, 200, 98, (200, 98))),
        (FrameRequest("auto", aspect=2.2), Frame(-10, 0, 220, 100, (220, 100))),
        (FrameRequest("scale", aspect=1.0), Frame(0, -50, 200, 200, (200, 200))),
        (FrameRequest("scale", aspect=1.0, proportions="height"), Frame(50, 0, 100, 100, (100, 100))),
        (FrameRequest("scale", aspect=1.0, proportions="width"), Frame(0, -50, 200, 200, (200, 200))),
        (FrameRequest("scale", aspect=4.0, proportions="height"), Frame(-100, 0, 400, 100, (400, 100))),
        # what a crop keeps
        (FrameRequest("crop", aspect=1.0, position="left"), Frame(0, 0, 100, 100, (100, 100))),
        (FrameRequest("crop", aspect=1.0, position="right"), Frame(100, 0, 100, 100, (100, 100))),
        (FrameRequest("crop", aspect=1.0, position="top"), Frame(50, 0, 100, 100, (100, 100))),
        (FrameRequest("crop", aspect=4.0, position="top"), Frame(0, 0, 200, 50, (200, 50))),
        (FrameRequest("crop", aspect=4.0, position="bottom_right"), Frame(0, 50, 200, 50, (200, 50))),
        # a target size
        (FrameRequest("crop", size=(50, 50)), Frame(50, 0, 100, 100, (50, 50))),
        (FrameRequest("pad", size=(50, 50)), Frame(0, -50, 200, 200, (50, 50))),
        (FrameRequest("auto", size=(400, 200)), Frame(0, 0, 200, 100, (400, 200))),
        # margins: cropping takes the largest frame that keeps them, padding the smallest around the whole image
        (FrameRequest("crop", margins=Margins(bottom=0.25)), Frame(20, 20, 160, 80, (160, 80))),
        (FrameRequest("pad", margins=Margins(bottom=0.25)), Frame(-7, 0, 213, 107, (213, 107))),
        (FrameRequest("auto", margins=Margins(bottom=0.25)), Frame(20, 20, 160, 80, (160, 80))),
        # auto pads where cropping cannot leave them
        (FrameRequest("auto", margins=Margins(top=0.4, bottom=0.4)), Frame(-150, -70, 500, 250, (500, 250))),
        # scale zooms to the subject
        (FrameRequest("scale", aspect=1.0, margins=Margins(0.1, 0.1, 0.1, 0.1)), Frame(69, 24, 62, 62, (62, 62))),
        (
            FrameRequest("scale", size=(500, 500), margins=Margins(None, 0.25, None, 0.25)),
            Frame(50, 5, 100, 100, (500, 500)),
        ),
        (
            FrameRequest("scale", size=(100, 200), margins=Margins(0.1, 0.25, 0.1, 0.25), proportions="height"),
            Frame(75, 5, 50, 100, (100, 200)),
        ),
        (
            FrameRequest("scale", size=(100, 200), margins=Margins(0.25, 0.4, 0.25, 0.4), proportions="height"),
            Frame(37.5, -70, 125, 250, (100, 200)),
        ),
        (
            FrameRequest("scale", size=(200, 100), margins=Margins(0.25, 0.1, 0.25, 0.1), proportions="width"),
            Frame(60, 35, 80, 40, (200, 100)),
        ),
    ],
)
def test_the_frame_of_each_mode(wanted: FrameRequest, expected: Frame) -> None:
    found = frame(SIZE, wanted, SUBJECT)
    assert found is not None
    assert found.size == expected.size
    assert (found.left, found.top, found.width, found.height) == pytest.approx(
        (expected.left, expected.top, expected.width, expected.height), abs=1
    )


@pytest.mark.parametrize(
    "wanted",
    [
        FrameRequest("pad", aspect=2.0),
        FrameRequest("pad", size=SIZE),
        FrameRequest("crop", aspect=2.1, tolerance=0.06),
        FrameRequest("crop", size=(210, 104), tolerance=0.05),
        FrameRequest("scale", margins=Margins(0.3, 0.3, 0.3, 0.2)),
        FrameRequest("crop", margins=Margins(bottom=0.23), tolerance=0.05),
    ],
)
def test_an_image_within_the_tolerance_stays_as_it_is(wanted: FrameRequest) -> None:
    assert frame(SIZE, wanted, SUBJECT) is None


@pytest.mark.parametrize(
    ("wanted", "subject", "sentence"),
    [
        (FrameRequest("pad", margins=Margins(top=0.5)), None, "No subject"),
        (FrameRequest("crop", margins=Margins(top=0.5, bottom=0.45)), SUBJECT, "Cropping alone cannot"),
        (FrameRequest("pad", margins=Margins(top=0.5, bottom=0.5)), SUBJECT, "no room"),
        (FrameRequest("pad", margins=Margins(left=1.0)), SUBJECT, "no room"),
        (FrameRequest("pad", aspect=90.0), None, None),
        (FrameRequest("pad", aspect=0.01), None, "target size"),
    ],
)
def test_what_cannot_be_framed_is_a_sentence(wanted: FrameRequest, subject: Any, sentence: str | None) -> None:
    if sentence is None:
        assert frame(SIZE, wanted, subject) is not None
        return
    with pytest.raises(ModelError, match=sentence):
        frame(SIZE, wanted, subject)


lengths = st.integers(8, 3000)
shares = st.none() | st.floats(0, 0.45)
frame_requests = st.builds(
    FrameRequest,
    mode=st.sampled_from(get_args(Mode)),
    aspect=st.none() | st.floats(0.2, 5),
    size=st.none() | st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
    margins=st.just(Margins()) | st.builds(Margins, shares, shares, shares, shares),
    position=st.sampled_from(["center", "top", "bottom_left"]),
    proportions=st.sampled_from([None, "height", "width"]),
)
boxes = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.05, 1))


@given(lengths, lengths, frame_requests, boxes)
def test_a_frame_keeps_its_modes_promise(width: int, height: int, wanted: FrameRequest, box: tuple[float, ...]) -> None:
    subject = (
        box[0] * width,
        box[1] * height,
        (box[0] + (1 - box[0]) * box[2]) * width,
        (box[1] + (1 - box[1]) * box[3]) * height,
    )
    try:
        found = frame((width, height), wanted, subject)
    except ModelError:
        assert wanted.margins or (wanted.aspect and not wanted.size)
        return
    if found is None:
        return
    slack = 1e-6 * max(found.width, found.height)
    right, bottom = found.left + found.width, found.top + found.height
    inside = found.left >= -slack and found.top >= -slack and right <= width + slack and bottom <= height + slack
    around = found.left <= slack and found.top <= slack and right >= width - slack and bottom >= height - slack
    if wanted.mode == "crop":
        assert inside
    if wanted.mode == "pad":
        assert around
    if wanted.mode == "auto":
        assert inside or around
    if wanted.size:
        assert found.size == wanted.size
        assert found.width / found.height == pytest.approx(wanted.size[0] / wanted.size[1], rel=1e-6)
        if wanted.mode != "scale" and wanted.margins:
            have = margins_of(
                (round(found.width * 1e6), round(found.height * 1e6)),
                tuple((edge - start) * 1e6 for edge, start in zip(subject, (found.left, found.top) * 2, strict=True)),  # type: ignore[arg-type] # four edges
            )
            for is_, want in ((have.left, wanted.margins.left), (have.top, wanted.margins.top)):
                assert want is None or is_ >= want - 1e-4  # type: ignore[operator] # all four are known
    else:
        assert found.size == (found.width, found.height)


def test_given_margins_win_over_the_references() -> None:
    assert Margins(left=0.1).over(Margins(0.2, 0.3, 0.4, 0.5)) == Margins(0.1, 0.3, 0.4, 0.5)
