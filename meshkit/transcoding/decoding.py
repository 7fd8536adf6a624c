"""What one decoding of a request is told and finds: violations, unknown members, files too large for an RPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from meshkit.freeform import FreeFormLimits
from meshkit.transcoding.scalars import BadValueError, Json
from meshkit.transcoding.unknown import UnknownMembers

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request, where the caller sees it."""

    loc: Loc
    msg: str
    type: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A member that carries a file as text and is too large for an RPC.

    Attributes:
        loc: Where it stands.
        data: Base64 or data URL.
        replace: Puts another text in its place.
    """

    loc: Loc
    data: str
    replace: Callable[[str], None]


@dataclass(slots=True)
class Decoding:
    """What one decoding is told and what it finds.

    Attributes:
        strict: Whether unknown members are violations.
        upload_threshold: Characters from which an upload member is handed over as an upload.
        held_threshold: The same for members inside of a free-form object, which is bounded as a whole.
        free_form: What one free-form member may hold.
        unknown: Unknown members that are no violations.
    """

    strict: bool = False
    upload_threshold: int = 1 << 62
    held_threshold: int = 1 << 62
    free_form: FreeFormLimits = field(default_factory=FreeFormLimits)
    violations: list[Violation] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    unknown: UnknownMembers = field(default_factory=UnknownMembers)

    def pass_over(self, loc: Loc, known: Iterable[str], *, others: bool = False) -> None:
        """Note a member that is not known, a violation where strict; with others, only one that is almost known."""
        meant = self.unknown.meant(str(loc[-1]), known)
        if others and not meant:
            return
        if self.strict:
            hint = f": did you mean {meant}?" if meant else ""
            self.fail(loc, f"Extra inputs are not permitted{hint}", "extra_forbidden")
        else:
            self.unknown.note(loc, meant)

    def fail(self, loc: Loc, message: str, kind: str) -> None:
        """Record a violation."""
        self.violations.append(Violation(loc, message, kind))

    def bad(self, loc: Loc, bad: BadValueError) -> None:
        """Record a value that its field cannot hold."""
        self.violations.append(Violation((*loc, *bad.path), bad.message, bad.kind))


def looks_remote(text: str) -> bool:
    """Whether a text is an address, which is no file however long it is."""
    return text.startswith(("http://", "https://"))


class LiftedFiles:
    """The files inside of one free-form object, taken out before it is built.

    Args:
        loc: Where the object stands.
        decoding: Takes the files.
    """

    def __init__(self, loc: Loc, decoding: Decoding) -> None:
        self._loc = loc
        self._decoding = decoding
        self._files: list[tuple[str, int | None, str]] = []

    def without_files(self, value: dict[str, Json], members: frozenset[str]) -> dict[str, Json]:
        """Return the object with nothing in place of files."""
        found = {}
        for key in members & value.keys():
            one = value[key]
            if type(one) is list:
                found[key] = [self._taken(key, index, item) for index, item in enumerate(one)]
            else:
                found[key] = self._taken(key, None, one)
        return {**value, **found} if self._files else value

    def _taken(self, key: str, index: int | None, item: Json) -> Json:
        if type(item) is not str or len(item) <= self._decoding.held_threshold or looks_remote(item):
            return item
        self._files.append((key, index, item))
        return ""

    def hand_over(self, built: Any) -> None:
        """Hand the files over as uploads, each to be put into the built object."""
        for key, index, data in self._files:
            loc = (*self._loc, key) if index is None else (*self._loc, key, index)
            self._decoding.uploads.append(Upload(loc, data, partial(_put_text, built, key, index)))


def _put_text(built: Any, key: str, index: int | None, text: str) -> None:
    value = built.fields[key]
    (value if index is None else value.list_value.values[index]).string_value = text
