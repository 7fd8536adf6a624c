"""Moments on the wire are the ones that protobuf's own method writes."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.moments import assign


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 11, 22, 23, 59, 59, 123_456, tzinfo=UTC),
        datetime(2026, 3, 1, 1, 2, 3, 999_999, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
    ],
)
def test_a_moment_is_written_exactly(moment: datetime) -> None:
    expected, written = Timestamp(), Timestamp(seconds=5, nanos=5)
    expected.FromDatetime(moment)
    assign(written, moment)
    assert written == expected
