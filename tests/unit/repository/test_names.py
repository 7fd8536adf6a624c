"""One class name means one thing, wherever it stands."""

import ast
from collections import defaultdict

from tests.unit.repository.sources import PRODUCT, modules, place


def test_no_class_name_means_two_things() -> None:
    places = defaultdict(list)
    for path in modules(*PRODUCT, "bench", "scripts"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                # `_Part` and `Part` are one word to a reader.
                places[node.name.lstrip("_")].append(f"{place(path)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
