"""Write the tables of `docs/providers.md` from the contract: who executes what, and by which credential.

`--check` writes nothing and fails if the page is not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from meshkit.accounts import CREDENTIALS
from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.config import PREFIX

PAGE = Path(__file__).resolve().parents[1] / "docs" / "providers.md"
_BEGIN = "<!-- scripts/providers_page.py writes from here: {name} -->"
_END = "<!-- to here -->"


def render(page: str) -> str:
    """Return the page with its tables as the contract has them now.

    Raises:
        ValueError: The page lacks the place of a table.
    """
    for name, table in (("accounts", _accounts()), ("capabilities", _capabilities())):
        begin = _BEGIN.format(name=name)
        head, found, rest = page.partition(begin)
        _, ended, tail = rest.partition(_END)
        if not (found and ended):
            raise ValueError(f"{PAGE.name} has no place for the table of {name}")
        page = f"{head}{begin}\n\n{table}\n\n{_END}{tail}"
    return page


def _accounts() -> str:
    rows = [
        f"| `{spec.name}` | `{spec.queue}` | {_settings(CREDENTIALS[spec.name])} |"
        for spec in PROVIDERS.values()
        if spec.name != "LOCAL"
    ]
    return "\n".join(["| provider | queue | credential |", "|---|---|---|", *rows])


def _settings(credentials: tuple[str, ...]) -> str:
    return " or ".join(f"`{PREFIX}{name.upper()}`" for name in credentials) or "none"


def _capabilities() -> str:
    rows = []
    for spec in PROVIDERS.values():
        for task_type, names in spec.tasks.items():
            if not TASK_TYPES[task_type].internal:
                rows.append(f"| `{spec.name}` | `{task_type}` | {', '.join(sorted(names)) or 'none'} |")
    return "\n".join(["| provider | task type | capabilities |", "|---|---|---|", *rows])


def main() -> int:
    """Write the page, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not current")
    page = PAGE.read_text(encoding="utf-8")
    current = render(page)
    if parser.parse_args().check:
        if page != current:
            sys.stderr.write("docs/providers.md is not current: run scripts/providers_page.py\n")
        return int(page != current)
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
