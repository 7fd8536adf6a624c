"""Members that no contract knows: guesses and warnings."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.transcoding.unknown import MOST_NAMED, UnknownMembers, closest

KNOWN = ("width", "height", "prompt", "negative_prompt", "num_inference_steps", "seed", "priority")
# RFC 7234, 5.5: code, agent, and a quoted string.
FORM = re.compile(r'299 atelier "(?:[^"\\]|\\.)*"', re.ASCII)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("widht", "width"),
        ("Width", "width"),
        ("heigth", "height"),
        ("promt", "prompt"),
        ("negative_promt", "negative_prompt"),
        ("num_inference_step", "num_inference_steps"),
        ("sead", "seed"),
        ("colour", ""),
        ("note", ""),
        ("", ""),
        ("width" * 1000, ""),
    ],
)
def test_a_slip_of_the_pen_is_known_by_its_likeness(name: str, meant: str) -> None:
    assert closest(name, KNOWN) == meant


def test_a_warning_names_the_first_and_counts_the_rest() -> None:
    members = UnknownMembers()
    assert members.warning() == ""
    members.note(("body", "steps", 0, "config", "widht"), "width")
    assert members.warning() == '299 atelier "Members that are not known: steps[0].config.widht (did you mean width?)"'
    for number in range(20):
        members.note(("body", f"m{number}"), "")
    assert members.warning().endswith(f', m6 and {21 - MOST_NAMED} more"')


def test_guesses_are_bounded() -> None:
    members = UnknownMembers(looks=2)
    assert [members.meant("widht", KNOWN) for _ in range(3)] == ["width", "width", ""]


@given(st.lists(st.text(max_size=200), min_size=1, max_size=20))
def test_no_name_breaks_the_header(names: list[str]) -> None:
    members = UnknownMembers()
    for name in names:
        members.note(("body", name), "")
    text = members.warning()
    assert FORM.fullmatch(text)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 8 * 500
