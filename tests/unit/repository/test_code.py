import ast
import re

import pytest

from tests.unit.repository.sources import modules, place

_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@pytest.mark.parametrize("folder", ["meshkit", "services"])
def test_a_log_line_is_an_event_name_and_fields(folder: str) -> None:
    wrong = []
    for path in modules(folder):
        text = path.read_text(encoding="utf-8")
        if "get_logger" not in text:
            continue
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
