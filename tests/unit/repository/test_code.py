import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.repository.sources import CODE, ROOT, modules, place

_MOST_LINES = 500
_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NOQA = re.compile(r"# (ruff: )?noqa: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* -- \S.*")
_TYPE_IGNORE = re.compile(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\]  ?# \S.*")


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_modules_stay_below_the_limit() -> None:
    lengths = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules(*CODE)}
    assert {name: lines for name, lines in lengths.items() if lines > _MOST_LINES} == {}


@pytest.mark.parametrize("package", ["meshkit", "modelkit", "services/gateway", "services/tasks", "services/workflows"])
def test_a_charter_names_the_modules_of_its_package(package: str) -> None:
    # These have the same role in every service.
    known = {"__init__", "__main__", "config", "migrations"}
    charter = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    parts = {path.stem for path in (ROOT / package).glob("*.py")}
    parts |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert sorted(name for name in parts - known if f"`{name}`" not in charter) == []


@pytest.mark.parametrize("folder", ["meshkit", "services"])
def test_a_log_line_is_an_event_name_and_fields(folder: str) -> None:
    wrong = []
    for path in modules(folder):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id.lstrip("_") in {"log", "logger"}):
                continue
            first = node.args[0] if node.args else None
            named = isinstance(first, ast.Constant) and isinstance(first.value, str) and _EVENT.fullmatch(first.value)
            if not named or len(node.args) > 1:
                wrong.append(f"{place(path)}:{node.lineno}")
    assert wrong == []


def test_an_ignored_rule_names_its_code_and_its_reason() -> None:
    wrong = [
        f"{place(path)}:{line}: {comment}"
        for path in modules(*CODE)
        for line, comment in _comments(path)
        if ("noqa" in comment and not _NOQA.search(comment))
        or ("type: ignore" in comment and not _TYPE_IGNORE.search(comment))
    ]
    assert wrong == []
