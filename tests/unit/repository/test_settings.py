import re
import subprocess
import sys

from meshkit import topology
from meshkit.config import PREFIX
from scripts.settings_page import settings_of
from tests.unit.repository.sources import ROOT, modules, pages, place

# What the command line reads itself, and a stream of NATS that is called so.
_OTHERS = {"ATELIER_DATA", "ATELIER_URL", "ATELIER_TOKEN", "ATELIER_EVENTS", "ATELIER_TRAINER"}
_SERVICES = {spec.module: settings_of(spec) for spec in (*topology.SERVICES, *topology.OPTIONAL, topology.MARKER)}
_NAME = re.compile(r"\bATELIER_[A-Z0-9_]*[A-Z0-9]\b")


def _known() -> set[str]:
    fields = {f"{PREFIX}{field.upper()}" for settings in _SERVICES.values() for field in settings.model_fields}
    fields |= {topology.address_setting(spec.role) for spec in (*topology.addressed(), *topology.OPTIONAL)}
    return fields | {f"{name}_FILE" for name in fields} | _OTHERS


def test_settings_that_pages_name_exist() -> None:
    known = _known()
    wrong = {
        f"{place(page)}: {name}"
        for page in pages()
        for name in _NAME.findall(page.read_text(encoding="utf-8"))
        if name not in known
    }
    assert sorted(wrong) == []


def test_what_the_command_line_reads_itself_is_in_its_sources() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in modules("atelier_cli"))
    assert [name for name in sorted(_OTHERS - {"ATELIER_EVENTS"}) if name not in sources] == []


def test_every_setting_says_what_it_is() -> None:
    assert [
        f"{name}: {field}"
        for name, settings in _SERVICES.items()
        for field, info in settings.model_fields.items()
        if not info.description
    ] == []


def test_the_page_of_settings_is_current() -> None:
    script = [sys.executable, "scripts/settings_page.py", "--check"]
    assert subprocess.run(script, cwd=ROOT, check=False).returncode == 0
