"""`atelier inspect`: what a picture says of its making."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from atelier_cli.errors import CliError
from atelier_cli.terminal import out


def inspect(
    file: Annotated[Path, typer.Argument(help="A picture that a task made.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the notes as JSON.")] = False,
) -> None:
    """Print the prompt, model, seed and settings that a picture was made with; exit code 1 where it says nothing."""
    notes = _notes(file)
    if as_json:
        out.print(json.dumps(notes, ensure_ascii=False), markup=False)
        return
    longest = max(map(len, notes))
    for name, value in notes.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        out.print(f"{name:{longest}s}  {shown}", markup=False)


def _notes(file: Path) -> dict[str, Any]:
    from PIL import Image  # noqa: PLC0415 -- other commands need not load it

    from meshkit.images.notes import read_notes  # noqa: PLC0415 -- as above

    if not file.is_file():
        raise CliError(f"{file} is no file.")
    try:
        notes = read_notes(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise CliError(f"{file} is no picture that can be read.") from None
    if notes is None:
        raise CliError(f"{file} says nothing of its making.")
    return notes
