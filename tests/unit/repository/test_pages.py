import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from typer.main import get_command

from atelier_cli.main import app
from services.tasks.catalog import TASK_TYPES_WITH_HANDLERS
from tests.unit.repository.sources import ROOT, pages, place

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`")
_PATH = re.compile(r"(?:[a-z_0-9.]+/)+[a-zA-Z_0-9.-]*")
# Folders of the repository whose files pages name in code spans.
_FOLDERS = (
    *("atelier_cli", "bench", "docs", "examples", "gen", "meshkit"),
    *("modelkit", "models", "ops", "proto", "scripts", "services", "tests"),
)


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=place)
def test_links_resolve(page: Path) -> None:
    broken = []
    for groups in _LINK.findall(_SPAN.sub("", _prose(page))):
        target, _, anchor = (groups[0] or groups[1]).partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(target)
        elif anchor and file.suffix == ".md" and anchor not in _anchors(file):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("page", pages(), ids=place)
def test_named_files_exist(page: Path) -> None:
    named = {
        span
        for span in _SPAN.findall(_prose(page))
        for span in [span.strip("`")]
        if span.startswith(tuple(f"{folder}/" for folder in _FOLDERS)) and _PATH.fullmatch(span)
    }
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_decision_is_listed_and_numbered() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(path.name for path in folder.glob("0*.md"))
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((0[^)]*)\)", index) == records
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    for name in records:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {int(name[:4])}. "), name
        assert [part in text for part in ("**Context.**", "**Decision.**", "**Consequence.**")] == [True] * 3, name


def test_the_glossary_is_sorted() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.lower)


def test_commands_on_the_page_of_the_command_line_exist() -> None:
    command = get_command(app)
    names = set(command.list_commands(command.make_context("atelier", [], resilient_parsing=True)))  # type: ignore[attr-defined] # a group
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `atelier ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named == names


def test_the_table_of_dependencies_is_that_of_the_lock() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \|", page, re.MULTILINE))
    pins = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    assert set(rows) == {re.split(r"[\[<>=]", name)[0] for name in declared}
    assert {name: pins[name] for name in rows} == rows


@pytest.mark.parametrize("task_type", TASK_TYPES_WITH_HANDLERS)
def test_each_type_is_shown_by_a_call_and_its_result(task_type: str) -> None:
    text = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {task_type}\n")[2].partition("\n## ")[0]
    assert f'"task_type": "{task_type}"' in section
    assert "](pictures/" in section or task_type == "LLM_INTERACTION"
