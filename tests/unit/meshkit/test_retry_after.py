from datetime import UTC, datetime, timedelta

import pytest

from meshkit.retry_after import asked_pause

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("9" * 40, 999_999_999),
        ("Fri, 27 Nov 2026 12:01:30 GMT", 90),
        ("Fri, 27 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_seconds_and_dates_are_read(header: str, seconds: int) -> None:
    assert asked_pause(header, NOW) == timedelta(seconds=seconds)


@pytest.mark.parametrize("header", ["", "soon", "-3", "1.5", "٣"])
def test_what_is_malformed_asks_for_nothing(header: str) -> None:
    assert asked_pause(header, NOW) is None
