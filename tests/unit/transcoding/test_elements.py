"""Counting what a JSON text holds, by a slow count of the same."""

import json
import random
from typing import Any

import pytest

from meshkit.transcoding import elements
from meshkit.transcoding.elements import has_more_elements

_TEXTS = 'a\\",{[é\n'


def marks_one_by_one(text: str) -> int:
    """Commas and opening brackets outside of strings."""
    found, inside, escaped = 0, False, False
    for one in text:
        if escaped:
            escaped = False
        elif inside:
            escaped = one == "\\"
            inside = one != '"'
        elif one == '"':
            inside = True
        else:
            found += one in ",{["
    return found


def drawn(draw: random.Random, depth: int = 0) -> Any:
    """Draw a value whose texts look like JSON."""
    kind = draw.random()
    if depth < 3 and kind < 0.3:
        return {text(draw): drawn(draw, depth + 1) for _ in range(draw.randrange(4))}
    if depth < 3 and kind < 0.5:
        return [drawn(draw, depth + 1) for _ in range(draw.randrange(4))]
    return text(draw)


def text(draw: random.Random) -> str:
    return "".join(draw.choice(_TEXTS) for _ in range(draw.randrange(8)))


@pytest.mark.parametrize("piece_bytes", [2, 3, 7, 1 << 18])
def test_it_counts_what_is_outside_of_strings(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(elements, "_PIECE_BYTES", piece_bytes)
    draw = random.Random(piece_bytes)
    for _ in range(500):
        content = json.dumps(drawn(draw), ensure_ascii=draw.random() < 0.5)
        count = marks_one_by_one(content)
        assert not has_more_elements(content.encode(), count), content
        assert not count or has_more_elements(content.encode(), count - 1), content


@pytest.mark.parametrize("broken", [b"\\", b'"\\', b"[" * 9 + b"\\", b'["' + b"\\" * 999, b"\xff,,,"])
def test_what_is_no_json_ends_as_well(monkeypatch: pytest.MonkeyPatch, broken: bytes) -> None:
    monkeypatch.setattr(elements, "_PIECE_BYTES", 4)
    assert isinstance(has_more_elements(broken, 1), bool)
