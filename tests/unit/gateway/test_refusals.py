"""Lines about requests that never reach the application."""

import pytest
from structlog.testing import capture_logs

from services.gateway import refusals
from services.gateway.refusals import RefusalLog


def test_a_flood_of_refused_requests_writes_a_bounded_number_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_MOST_LINES", 3)
    now = 0.0
    with capture_logs() as lines:
        log = RefusalLog(lambda: now)
        for number in range(100):
            log.note(400, "Invalid HTTP request received.", "10.0.0.1", f"r{number}")
        now = 61.0
        log.note(431, "too large", None, "later")
        log.note(431, "too large", None, "latest")
    assert [line["request_id"] for line in lines] == ["r0", "r1", "r2", "later", "latest"]
    assert [line.get("left_out_before") for line in lines] == [None, None, None, 97, None]
    assert (lines[0]["event"], lines[0]["status"], lines[0]["client"]) == ("request_refused", 400, "10.0.0.1")
