"""Files of this machine as a request takes them: inside of it where its member takes data, else stored first."""

import base64
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from atelier_cli.client import Gateway
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import MAX_INLINE_BYTES, content
from atelier_cli.taskforms import FileMember, file_members
from meshkit.catalog import Form, InputSpec

MARK: Final = "@"
FOLDER: Final = "uploads"
_REMOTE: Final = ("http://", "https://")
_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9._-]+")
_PATTERN: Final = frozenset("*?[")
# What a folder is searched for; a file that is named may have any name.
_PICTURES: Final = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".hif"),
        *(".mpo", ".jp2", ".ppm", ".tga", ".ico"),
    }
)


def pictures(given: Iterable[str]) -> list[str]:
    """Return what is given, with the pictures of folders and the matches of patterns in their places.

    Raises:
        CliError: A folder holds no picture, or nothing matches a pattern.
    """
    found: list[str] = []
    for text in given:
        place = Path(text.removeprefix(MARK)).expanduser()
        if place.is_dir():
            inside = sorted(str(one) for one in place.iterdir() if one.suffix.lower() in _PICTURES and one.is_file())
            if not inside:
                raise CliError(f"The folder {place} holds no picture.", ExitCode.USAGE)
            found += inside
        elif _PATTERN & set(text) and not place.exists() and not text.startswith(_REMOTE):
            matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 -- a pattern from the root, or from here
            if not matches:
                raise CliError(f"Nothing matches {text}.", ExitCode.USAGE)
            found += matches
        else:
            found.append(text)
    return found


class LocalFiles:
    """Puts files into requests to one gateway.

    Args:
        gateway: Where files are stored that no member takes as data.
        base: Folder that relative paths begin at.
    """

    def __init__(self, gateway: Gateway, base: Path = Path()) -> None:
        self._gateway = gateway
        self._base = base
        self._stored: dict[Path, str] = {}
        self.elsewhere: list[str] = []  # what was taken for paths in storage

    def fill(self, body: dict[str, Any], member: FileMember, values: list[str]) -> None:
        """Give a request images: files of this machine, addresses, or paths in storage.

        Raises:
            CliError: A file cannot be read or stored.
        """
        places = [self._place(value) for value in values]
        data_field = member.member_for(Form.DATA)
        kept = member.input.kept.field
        if not member.input.many and places[0] is not None and data_field is not None:
            body[data_field] = self._inline(places[0])
            return
        takes_data = Form.DATA in member.input.kept.accepts
        texts = [
            value if place is None else self._inline(place) if takes_data else self._store(place)
            for value, place in zip(values, places, strict=True)
        ]
        body[kept] = texts if member.input.many else texts[0]

    def stored(self, value: str) -> str:
        """Return the path in storage of a file of this machine, once it is there; any other value as it is.

        The path ends in the file's own name, so that what is said of it later names it as the user does.

        Raises:
            CliError: A file cannot be read or stored.
        """
        place = self._place(value)
        return value if place is None else self._store(place, named=True)

    def in_member(self, members: Mapping[str, InputSpec], name: str, value: Any) -> Any:
        """Return the value of a member, with the files in place of `@file`.

        Args:
            members: The inputs of the type, by member.
            name: The member.
            value: Its value, as JSON.

        Raises:
            CliError: A file cannot be read or stored.
        """
        if isinstance(value, list):
            return [self.in_member(members, name, one) for one in value]
        known = members.get(name)
        if known is None or not isinstance(value, str) or not value.startswith(MARK):
            return value
        place = self._local(value)
        source = next(one for one in known.sources if one.field == name)
        return self._inline(place) if Form.DATA in source.accepts else self._store(place)

    def in_workflow(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Return a definition with files in place of `@file` in the `config` of its steps."""
        steps = workflow.get("steps")
        if not isinstance(steps, list):
            return workflow
        return {**workflow, "steps": [self._in_step(one) for one in steps]}

    def _in_step(self, step: Any) -> Any:
        if not isinstance(step, dict):
            return step
        config = step.get("config", {})
        if not isinstance(config, dict):
            return step
        members = file_members(str(step.get("task_type")))
        filled = dict(step)
        if config:
            filled["config"] = {name: self.in_member(members, name, one) for name, one in config.items()}
        listed, carried = step.get("for_each"), _carried(step, members)
        if carried and isinstance(listed, dict) and isinstance(listed.get("items"), list):
            filled["for_each"] = {**listed, "items": [self._in_item(carried, one) for one in listed["items"]]}
        return filled

    def _in_item(self, carried: frozenset[str], item: Any) -> Any:
        """Return an item of a list; items are small, so that their files are stored."""
        if isinstance(item, dict):
            return {name: self._stored_file(one) if name in carried else one for name, one in item.items()}
        return self._stored_file(item) if "" in carried else item

    def _stored_file(self, value: Any) -> Any:
        return self._store(self._local(value)) if isinstance(value, str) and value.startswith(MARK) else value

    def _place(self, value: str) -> Path | None:
        """Return the file of this machine that a value names; None for an address or a path in storage."""
        if value.startswith(MARK):
            return self._local(value)
        if value.startswith(_REMOTE):
            return None
        place = self._base / Path(value).expanduser()
        if place.exists():
            return place
        self.elsewhere.append(value)
        return None

    def _local(self, value: str) -> Path:
        return self._base / Path(value.removeprefix(MARK)).expanduser()

    @staticmethod
    def _inline(place: Path) -> str:
        return f"data:application/octet-stream;base64,{base64.b64encode(content(place, MAX_INLINE_BYTES)).decode()}"

    def _store(self, place: Path, *, named: bool = False) -> str:
        if place not in self._stored:
            data = content(place, MAX_INLINE_BYTES)
            # Named by its content: who sends it again stores nothing more.
            name = f"{FOLDER}/{hashlib.sha256(data).hexdigest()[:32]}"
            name += f"/{_plain_name(place)}" if named else place.suffix.lower()[:10]
            try:
                self._gateway.store(name, data)
            except CliError as error:
                if error.code is not ExitCode.FAILED:
                    raise
                raise CliError(f"{place}: {error.sentence}") from error
            self._stored[place] = name
        return self._stored[place]


def _plain_name(place: Path) -> str:
    """Return a file's name as a path in storage takes it everywhere."""
    stem = _NOT_PLAIN.sub("-", place.stem).strip("-.")[:80] or "picture"
    return stem + _NOT_PLAIN.sub("", place.suffix.lower())[:10]


def _carried(step: Mapping[str, Any], members: Mapping[str, InputSpec]) -> frozenset[str]:
    """Return the members of a step's items that its mappings make files of; "" for items that are no objects."""
    mappings = step.get("input_mappings")
    return frozenset(
        str(one.get("from_field")).removeprefix("value").removeprefix(".")
        for one in (mappings if isinstance(mappings, list) else ())
        if isinstance(one, dict) and one.get("from_step") == "$item" and one.get("to_field") in members
    )


def assignments(given: Iterable[str], option: str) -> Iterator[tuple[str, Any]]:
    """Yield names and values of `NAME=VALUE`; a value is JSON where it reads as JSON, else text.

    Raises:
        CliError: There is no `=`.
    """
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CliError(f"{option} {text!r} is no NAME=VALUE.", ExitCode.USAGE)
        try:
            yield name, json.loads(value, parse_constant=_no_number)
        except ValueError:
            yield name, value


def _no_number(text: str) -> Any:
    raise ValueError(text)
