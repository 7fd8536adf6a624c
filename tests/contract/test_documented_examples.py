"""The comparison with the documented examples of monitoring: it takes each as it stands, and none that is damaged."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.documented import documented, documented_requests

REQUESTS = sorted(documented_requests())
# Any members are right in them.
FREE = ("payload_schema", "example")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list with each of its names or numbers."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, name
        if isinstance(inner, dict | list) and name not in FREE:
            yield from places(inner)


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_each_example_has_the_documented_shape_itself(method: str, path: str) -> None:
    answer = documented(method, path)
    answer.holds(answer.example)
    assert answer.empty_lists(answer.example) == []


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_a_member_more_or_less_or_of_another_type_is_noticed(method: str, path: str) -> None:
    answer = documented(method, path)
    for number, (_, name) in enumerate(list(places(answer.example))):
        damaged = copy.deepcopy(answer.example)
        holder, _ = list(places(damaged))[number]
        before = holder[name]
        holder[name] = [{"other": []}] if not isinstance(before, list) else "other"
        assert answer.differences(damaged) or before is None, (path, name)
    for name in answer.example:
        assert answer.differences({other: value for other, value in answer.example.items() if other != name})
    assert answer.differences({**answer.example, "more": 1}) == ["more is not documented"]


def test_all_twenty_one_examples_are_held() -> None:
    assert len(REQUESTS) == 21
