"""The files of the repository that its own rules are checked on."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
PRODUCT = ("atelier_cli", "meshkit", "modelkit", "models", "services")
CODE = (*PRODUCT, "bench", "scripts", "tests")


def modules(*folders: str) -> list[Path]:
    """Return the Python files below these folders, in order."""
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
    )


def pages() -> list[Path]:
    """Return the pages of documentation."""
    return sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/*.md")]
    )


def place(path: Path) -> str:
    """Return a file's path from the root."""
    return path.relative_to(ROOT).as_posix()
