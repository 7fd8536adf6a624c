import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.workflows.graph import ancestors, find_cycle, topological_order


@st.composite
def dags(draw: st.DrawFn, size: int = 30) -> dict[str, list[str]]:
    count = draw(st.integers(1, size))
    names = [f"s{index}" for index in range(count)]
    shape = {
        name: draw(st.lists(st.sampled_from(names[:at]), unique=True, max_size=4)) if at else []
        for at, name in enumerate(names)
    }
    order = draw(st.permutations(names))
    return {name: shape[name] for name in order}


@given(dags())
def test_the_order_respects_every_dependency(shape: dict[str, list[str]]) -> None:
    order = topological_order(shape)
    assert sorted(order) == sorted(shape)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[needed] < place[name] for name, needs in shape.items() for needed in needs)
    assert find_cycle(shape) == []


@given(dags(), st.data())
def test_a_cycle_is_found_and_named(shape: dict[str, list[str]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(shape)))
    above = sorted(ancestors(shape)[name])
    if not above:
        return
    root = data.draw(st.sampled_from(above))
    cycle = find_cycle({**shape, root: [*shape[root], name]})
    assert cycle[0] == cycle[-1]
    assert {name, root} & set(cycle)
    looped = {**shape, root: [*shape[root], name]}
    assert all(following in looped[one] for one, following in itertools.pairwise(cycle))


def test_the_order_of_independent_steps_is_that_of_the_definition() -> None:
    assert topological_order({"c": [], "a": [], "b": ["c"]}) == ["c", "a", "b"]


def test_a_long_chain_takes_no_recursion() -> None:
    chain = {str(at): [str(at - 1)] if at else [] for at in range(5000)}
    assert find_cycle(chain) == []
    assert find_cycle({**chain, "0": ["4999"]})[0] == "0"


@pytest.mark.parametrize(("name", "above"), [("a", set()), ("b", {"a"}), ("d", {"a", "b", "c"})])
def test_ancestors_are_all_that_lies_before(name: str, above: set[str]) -> None:
    assert ancestors({"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []})[name] == above
