import pytest

from bench.gpu.parts import PARTS, choose, load


def names(*wanted: str) -> list[str]:
    return [part.name for part in choose(wanted)]


def test_all_parts_are_chosen_where_none_is_named() -> None:
    assert names() == [part.name for part in PARTS]


def test_a_part_brings_those_that_it_needs_along() -> None:
    assert names("worker") == ["build", "worker"]
    assert names("compile", "shipped") == ["shipped", "build", "compile"]


def test_a_name_of_no_part_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no part train; there are shipped, "):
        choose(["train"])


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_registered_rightly(part: object) -> None:
    assert part in PARTS
    [found] = [each for each in PARTS if each is part]
    assert callable(load(found.entry))
    before = [each.name for each in PARTS[: PARTS.index(found)]]
    assert set(found.needs) <= set(before), "a part stands after those that it needs"
