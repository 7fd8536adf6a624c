"""Conditions of requests, as RFC 9110, 13, has them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from meshkit.objects import ObjectInfo
from services.gateway.conditions import Conditions, PathTurns, Verdict

INFO = ObjectInfo("a.png", 3, "v1", "image/png", datetime(2026, 5, 4, 3, 2, 1, 500_000, tzinfo=UTC))
OLDER = "Mon, 04 May 2026 03:02:00 GMT"
SAME = "Mon, 04 May 2026 03:02:01 GMT"
HOLD, NOT_MODIFIED, FAILED = Verdict.HOLD, Verdict.NOT_MODIFIED, Verdict.FAILED


def of(*headers: tuple[str, str]) -> Conditions:
    return Conditions.of(Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in headers]))


@pytest.mark.parametrize(
    ("headers", "read", "written"),
    [
        ([], HOLD, HOLD),
        ([("if-match", '"v1"')], HOLD, HOLD),
        ([("if-match", '"v0", "v1"')], HOLD, HOLD),
        ([("if-match", '"v0"'), ("if-match", '"v1"')], HOLD, HOLD),
        ([("if-match", "v1")], HOLD, HOLD),
        ([("if-match", "*")], HOLD, HOLD),
        ([("if-match", '"*"')], FAILED, FAILED),
        ([("if-match", '"v0"')], FAILED, FAILED),
        ([("if-match", 'W/"v1"')], FAILED, FAILED),
        ([("if-match", "")], FAILED, FAILED),
        ([("if-none-match", '"v1"')], NOT_MODIFIED, FAILED),
        ([("if-none-match", 'W/"v1"')], NOT_MODIFIED, FAILED),
        ([("if-none-match", '"a, b", W/"v1"')], NOT_MODIFIED, FAILED),
        ([("if-none-match", "*")], NOT_MODIFIED, FAILED),
        ([("if-none-match", '"v0"')], HOLD, HOLD),
        ([("if-none-match", '"v1, v0"')], HOLD, HOLD),
        ([("if-modified-since", SAME)], NOT_MODIFIED, HOLD),
        ([("if-modified-since", OLDER)], HOLD, HOLD),
        ([("if-modified-since", "yesterday")], HOLD, HOLD),
        ([("if-unmodified-since", SAME)], HOLD, HOLD),
        ([("if-unmodified-since", OLDER)], FAILED, FAILED),
        ([("if-unmodified-since", "yesterday")], HOLD, HOLD),
        # What each of them hides, and what it does not.
        ([("if-match", '"v1"'), ("if-unmodified-since", OLDER)], HOLD, HOLD),
        ([("if-none-match", '"v0"'), ("if-modified-since", SAME)], HOLD, HOLD),
        ([("if-match", '"v1"'), ("if-none-match", '"v1"')], NOT_MODIFIED, FAILED),
        ([("if-match", '"v0"'), ("if-none-match", '"v1"')], FAILED, FAILED),
        ([("if-unmodified-since", SAME), ("if-modified-since", SAME)], NOT_MODIFIED, HOLD),
    ],
)
def test_conditions_hold_in_the_order_of_the_rfc(
    headers: list[tuple[str, str]], read: Verdict, written: Verdict
) -> None:
    conditions = of(*headers)
    assert conditions.verdict(INFO, reads=True) is read
    assert conditions.verdict(INFO, reads=False) is written


@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        (("if-match", "*"), FAILED),
        (("if-match", '"v1"'), FAILED),
        (("if-none-match", "*"), HOLD),
        (("if-none-match", '"v1"'), HOLD),
        (("if-unmodified-since", OLDER), HOLD),
    ],
)
def test_conditions_on_what_is_not_there(header: tuple[str, str], verdict: Verdict) -> None:
    assert of(header).verdict(None, reads=False) is verdict


def test_a_condition_of_reads_alone_does_not_bind_writes() -> None:
    assert not of(("if-modified-since", SAME)).bind_writes
    assert of(("if-match", "nonsense")).bind_writes


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_text_is_too_strange_for_a_condition(text: str) -> None:
    for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"):
        assert of((name, text)).verdict(INFO, reads=True) in Verdict


def test_writers_of_one_object_share_a_lock_that_goes_with_them() -> None:
    turns = PathTurns()
    lock = turns.of("acme", "a")
    assert turns.of("acme", "a") is lock
    assert turns.of("acme", "b") is not lock
    assert turns.of("globex", "a") is not lock
