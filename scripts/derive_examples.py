"""Derive the documented JSON examples of monitoring from the printed reference.

The reference are two texts outside the project, named on the command line; the fixture that this makes is committed and
is what tests compare the answers of a running mesh with. It holds the examples of answers, and of the reference's
sentences none.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests" / "contract" / "documented_examples.json"
EXAMPLES = 21
_REQUEST = re.compile(r"(GET|POST) (/api/\S+)")
_TITLE = re.compile(r'    "title": "(\w+)",?')


def examples(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Find each request that stands on a line of its own, and the first JSON below it, which is its answer.

    A generated page prints the schema of an answer below its example; the schema's name is kept.
    """
    asked: dict[str, Any] | None = None
    number = 0
    while number < len(lines):
        line = lines[number].rstrip()
        number += 1
        if found := _REQUEST.fullmatch(line):
            asked = {"method": found[1], "path": found[2].partition("?")[0]}
        elif line == "{" and asked is not None:
            end = next(index for index in range(number, len(lines)) if lines[index].startswith("}"))
            # The end of a page and the beginning of the next one share a line.
            body = json.loads("\n".join([*lines[number - 1 : end], "}"]))
            number = end + 1
            yield asked | {"schema": schema_of(lines, number), "example": body}
            asked = None


def schema_of(lines: Sequence[str], number: int) -> str | None:
    """Return the name of the schema that is printed below an example; None where none is."""
    below = [line.rstrip() for line in lines[number : number + 5]]
    if "Schema of the response body" not in below:
        return None
    titles = (_TITLE.fullmatch(line.rstrip()) for line in lines[number:])
    return next(found[1] for found in titles if found)


def derive(references: Sequence[Path]) -> list[dict[str, Any]]:
    """Return all examples, sorted by path and method.

    Raises:
        ValueError: the reference is not the one of the fixture.
    """
    found = [one for path in references for one in examples(path.read_text(encoding="utf-8").splitlines())]
    if len(found) != EXAMPLES:
        raise ValueError(f"expected {EXAMPLES} examples, found {len(found)}")
    return sorted(found, key=lambda one: (one["path"], one["method"]))


def main() -> int:
    """Write the fixture, or compare it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("references", type=Path, nargs=2, help="compute-monitoring.txt and system-monitoring.txt")
    parser.add_argument("--check", action="store_true", help="fail where the committed fixture differs")
    arguments = parser.parse_args()
    text = json.dumps(derive(arguments.references), indent=1, sort_keys=True) + "\n"
    if arguments.check:
        if FIXTURE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{FIXTURE.relative_to(ROOT)} is not what the reference says: run this without --check")
        return 1
    FIXTURE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
