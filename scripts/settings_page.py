"""Write `docs/settings.md`, the list of every setting, from the settings classes of the services.

`--check` writes nothing and fails if the page is not current.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from meshkit import topology
from meshkit.config import PREFIX, MeshSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

Every service reads its settings from the environment, once at start. In place of any variable, the one with `_FILE` at
its end may name a file that contains the value (`ATELIER_AUTH_SECRET_FILE`). Commas separate the items of a list.
`atelier up` passes variables on to the services that use them. `scripts/settings_page.py` writes this page.
"""


def render() -> str:
    """Return the page."""
    parts = [_HEAD, _section("Every service", MeshSettings.model_fields)]
    for spec in (*topology.SERVICES, *topology.OPTIONAL, topology.MARKER):
        settings = settings_of(spec)
        own = {
            name: info
            for name, info in settings.model_fields.items()
            if name not in MeshSettings.model_fields or name in settings.__annotations__
        }
        parts.append(_section(f"`{spec.module}`", own))
    return "\n".join(parts)


def settings_of(spec: topology.ServiceSpec) -> type[MeshSettings]:
    """Return the settings of a service, the one class of its `config`."""
    module = importlib.import_module(f"{spec.module}.config")
    [own] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, MeshSettings) and value.__module__ == module.__name__
    ]
    return own


def _section(title: str, fields: dict[str, FieldInfo]) -> str:
    rows = []
    for name, info in fields.items():
        meaning = (info.description or "").replace("|", "\\|")
        # The gateway reads the address of each service from a variable of its own.
        variables = [topology.address_setting(spec.role) for spec in topology.routable()] if name == "addresses" else []
        rows += [
            f"| `{variable}` | {_default(info) if not variables else ''} | {meaning} |"
            for variable in variables or [f"{PREFIX}{name.upper()}"]
        ]
    return "\n".join([f"## {title}", "", "| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, Path):
        temporary = Path(tempfile.gettempdir())
        return f"`{value.name}` in the temporary folder" if value.is_relative_to(temporary) else f"`{value}`"
    if value is None or value is PydanticUndefined or value in ("", {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> int:
    """Write the page, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not current")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") == render():
            return 0
        sys.stderr.write("docs/settings.md is not current: run scripts/settings_page.py\n")
        return 1
    PAGE.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
