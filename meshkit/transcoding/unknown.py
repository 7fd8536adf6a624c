"""Members that no contract knows: what their author most likely meant, and how an answer names them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache

# How alike two names must be: one letter wrong of five, or two that changed places.
_LIKENESS = 0.75
_LONGEST_NAME = 64
MOST_NAMED = 8
# To guess takes a fraction of a millisecond.
_MOST_LOOKS = 128


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that one is most like, empty where it is like none.

    Args:
        name: The unknown name.
        known: Names that there are.
    """
    return _closest(name, tuple(known)) if len(name) <= _LONGEST_NAME else ""


@lru_cache(maxsize=1024)
def _closest(name: str, known: tuple[str, ...]) -> str:
    found = get_close_matches(name.lower(), known, n=1, cutoff=_LIKENESS)
    return found[0] if found else ""


@dataclass(slots=True)
class UnknownMembers:
    """The members of a request that are ignored, bounded in number and in the time that guesses take.

    Attributes:
        found: The first of them, each with what was meant, empty where that is like nothing.
        count: How many there are.
        looks: For how many more it is guessed what was meant.
    """

    found: list[tuple[Sequence[str | int], str]] = field(default_factory=list)
    count: int = 0
    looks: int = _MOST_LOOKS

    def meant(self, name: str, known: Iterable[str]) -> str:
        """Return the known name that was most likely meant, empty where there is none or enough was guessed."""
        if self.looks <= 0:
            return ""
        self.looks -= 1
        return closest(name, known)

    def note(self, loc: Sequence[str | int], meant: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.found) < MOST_NAMED:
            self.found.append((loc, meant))

    def warning(self) -> str:
        """Return a `Warning` header (RFC 7234, 5.5) that names them, short and in ASCII; empty for none."""
        if not self.count:
            return ""
        names = [_named(loc) + (f" (did you mean {meant}?)" if meant else "") for loc, meant in self.found]
        more = f" and {self.count - len(names)} more" if self.count > len(names) else ""
        text = f"Members that are not known: {', '.join(names)}{more}"
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'299 atelier "{quoted}"'


def _named(loc: Sequence[str | int]) -> str:
    text = ""
    for part in loc[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    if len(text) > _LONGEST_NAME:
        text = f"...{text[-_LONGEST_NAME:]}"
    # As JSON has it: without control characters and letters that no header takes.
    return json.dumps(text)[1:-1].replace("\x7f", "\\u007f")
