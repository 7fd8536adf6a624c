"""The Range header."""

import pytest

from services.gateway.ranges import ByteRange, RangeError, parse_range


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=2-", ByteRange(2, 9)),
        ("bytes=-3", ByteRange(7, 9)),
        ("bytes=-30", ByteRange(0, 9)),
        ("bytes=8-99", ByteRange(8, 9)),
        ("Bytes = 1 - 2", ByteRange(1, 2)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes=0-1,3-4", None),
    ],
)
def test_one_range_is_honoured_and_what_is_none_is_ignored(text: str, found: ByteRange | None) -> None:
    assert parse_range(text, 10, "", '"v"') == found


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_outside_of_the_content_is_an_error(text: str, size: int) -> None:
    with pytest.raises(RangeError):
        parse_range(text, size, "", '"v"')


def test_a_range_of_another_version_is_ignored() -> None:
    assert parse_range("bytes=0-1", 10, '"older"', '"v"') is None
    assert parse_range("bytes=0-1", 10, '"v"', '"v"') == ByteRange(0, 1)
