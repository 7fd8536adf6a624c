import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.workflows.mapping import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    TransformError,
    ValueKind,
    apply,
    fits,
    kind_after,
    parse,
)

STRINGS = ValueKind("string", many=True)


@pytest.mark.parametrize(
    ("text", "kind", "after", "value", "result"),
    [
        ("first", STRINGS, STRING, ["a", "b"], "a"),
        ("index(1)", STRINGS, STRING, ["a", "b"], "b"),
        ("index( -1 )", STRINGS, STRING, ["a", "b"], "b"),
        ('join(", ")', STRINGS, STRING, ["a", "b"], "a, b"),
        ('join("|")', ValueKind("integer", many=True), STRING, [1, 2], "1|2"),
        ('format("a {} dress")', STRING, STRING, "red", "a red dress"),
        ('format("{} wide")', INTEGER, STRING, 64, "64 wide"),
        ("to_list", STRING, STRINGS, "a", ["a"]),
        ('default("none")', STRING, STRING, None, "none"),
        ('default("none")', STRING, STRING, "a", "a"),
        ('default(["x"]) | first', STRINGS, STRING, None, "x"),
        ("scale(0.5)", INTEGER, INTEGER, 5, 2),
        ("scale(0.5)", NUMBER, NUMBER, 5.0, 2.5),
        ('first | format("(|{}|)") | to_list', STRINGS, STRINGS, ["a"], ["(|a|)"]),
        ("first", STRINGS, STRING, None, None),
    ],
)
def test_a_transform_types_and_changes_its_value(
    text: str, kind: ValueKind, after: ValueKind, value: Any, result: Any
) -> None:
    calls = parse(text)
    assert kind_after(kind, calls) == after
    assert apply(value, calls) == result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "upper",
        "first()",
        "first(1)",
        "index",
        "index(1.5)",
        "index(true)",
        "join(1)",
        'format("none")',
        "default(null)",
        'scale("2")',
        "scale(1e300)",
        "first |",
        "| first",
        "first first",
        'join(", "',
        "index(1, 2)",
        "first|" * 11 + "first",
    ],
)
def test_a_malformed_transform_is_refused(text: str) -> None:
    with pytest.raises(TransformError):
        parse(text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (STRING, "first"),
        (OBJECT, 'format("{}")'),
        (STRINGS, "to_list"),
        (STRING, "scale(2)"),
        (INTEGER, 'default("x")'),
        (STRING, "default(1)"),
        (STRINGS, 'default("x")'),
        (BOOLEAN, "scale(2)"),
        (ValueKind("object", many=True), 'join(",")'),
    ],
)
def test_a_transform_that_does_not_fit_its_value_is_refused(kind: ValueKind, text: str) -> None:
    with pytest.raises(TransformError):
        kind_after(kind, parse(text))


@pytest.mark.parametrize(("text", "value"), [("index(2)", ["a"]), ("index(-2)", ["a"]), ("first", [])])
def test_an_element_that_is_not_there_fails(text: str, value: list[str]) -> None:
    with pytest.raises(TransformError):
        apply(value, parse(text))


def test_kinds_fit_where_nothing_is_lost() -> None:
    gender = ValueKind("Gender")
    assert fits(INTEGER, NUMBER)
    assert not fits(NUMBER, INTEGER)
    assert fits(gender, STRING)
    assert not fits(STRING, gender)
    assert not fits(STRING, STRINGS)
    assert not fits(BOOLEAN, STRING)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(TransformError):
        parse(text)
