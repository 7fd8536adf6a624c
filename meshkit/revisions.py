"""Which revision a folder of migrations ends in, read without Alembic and without running any of them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path


def folder(script_package: str) -> Path:
    """Return the folder of a package of migrations.

    Args:
        script_package: Package with `env.py` and `versions/`.

    Raises:
        ValueError: It is no package.
    """
    spec = importlib.util.find_spec(script_package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{script_package} is not a package")
    return Path(next(iter(spec.submodule_search_locations)))


def head(scripts: Path) -> str | None:
    """Return the last revision; None where it is not certain, so that Alembic has to decide.

    Args:
        scripts: Folder with `versions/`.
    """
    own: set[object] = set()
    before: set[object] = set()
    for path in sorted((scripts / "versions").glob("*.py")):
        names = _constants(path)
        own.add(names.get("revision"))
        before.add(names.get("down_revision"))
    heads = own - before - {None}
    last = heads.pop() if len(heads) == 1 else None
    return last if isinstance(last, str) else None


def known(scripts: Path) -> frozenset[str]:
    """Return every revision of a folder.

    Args:
        scripts: Folder with `versions/`.
    """
    found = (_constants(path).get("revision") for path in (scripts / "versions").glob("*.py"))
    return frozenset(one for one in found if isinstance(one, str))


def _constants(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
        value = getattr(statement, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                found[target.id] = value.value
    return found
