import pytest

from meshkit.catalog import PROVIDERS, TASK_TYPES
from scripts.providers_page import PAGE, render


def test_the_tables_of_providers_are_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page


def test_every_provider_and_type_has_its_row() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for spec in PROVIDERS.values():
        public = [name for name in spec.tasks if not TASK_TYPES[name].internal]
        assert [name for name in public if f"| `{spec.name}` | `{name}` |" not in page] == []


def test_every_provider_is_described_beside_its_rows() -> None:
    told = "".join(line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("| `"))
    assert [name for name in PROVIDERS if name not in told] == []


def test_a_table_that_has_changed_is_seen() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page.replace("| `FASHN_STANDARD` | `fashn` |", "| `FASHN_STANDARD` | `fal` |")) == page
    with pytest.raises(ValueError, match="no place for the table of accounts"):
        render("# Providers")
