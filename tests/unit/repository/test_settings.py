import importlib
import re

from meshkit import topology
from meshkit.config import PREFIX, MeshSettings
from tests.unit.repository.sources import ROOT, pages, place

# What the command line reads itself, and a stream of NATS that is called so.
_OTHERS = {"ATELIER_DATA", "ATELIER_URL", "ATELIER_TOKEN", "ATELIER_EVENTS"}
_NAME = re.compile(r"\bATELIER_[A-Z0-9_]*[A-Z0-9]\b")


def _settings_of(spec: topology.ServiceSpec) -> type[MeshSettings]:
    module = importlib.import_module(f"{spec.module}.config")
    own = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, MeshSettings) and one.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} holds the settings of its service, in one class"
    return own[0]


_SERVICES = tuple(_settings_of(spec) for spec in topology.SERVICES)


def _known() -> set[str]:
    fields = {f"{PREFIX}{field.upper()}" for settings in _SERVICES for field in settings.model_fields}
    fields |= {topology.address_setting(spec.role) for spec in topology.addressed()}
    return fields | {f"{name}_FILE" for name in fields} | _OTHERS


def test_settings_that_pages_name_exist() -> None:
    known = _known()
    wrong = {
        f"{place(page)}: {name}"
        for page in pages()
        if page != ROOT / "CHANGELOG.md"
        for name in _NAME.findall(page.read_text(encoding="utf-8"))
        if name not in known
    }
    assert sorted(wrong) == []


def test_what_the_command_line_reads_itself_is_in_its_sources() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "atelier_cli").rglob("*.py"))
    assert [name for name in sorted(_OTHERS - {"ATELIER_EVENTS"}) if name not in sources] == []


def test_every_setting_says_what_it_is() -> None:
    undescribed = {
        f"{settings.__name__}.{name}"
        for settings in _SERVICES
        for name, field in settings.model_fields.items()
        if not field.description
    }
    # Their names say it, in full.
    assert undescribed == {
        f"{settings.__name__}.{name}"
        for settings in _SERVICES
        for name in (
            "database_min_connections", "database_max_connections",
            "s3_access_key", "s3_secret_key", "s3_bucket", "s3_secure", "s3_region",
        )
    }  # fmt: skip
