"""`atelier evaluate`: what pictures show of people."""

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError
from atelier_cli.files import MAX_INLINE_BYTES, content
from atelier_cli.folder import DataFolder
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

_PATH = "/api/v1/evaluation/"
_NOTHING = "-"


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Pictures.")],
    *,
    framing: Annotated[str, typer.Option(help="Expected framing: full_body, upper_body, close_up, ...")] = "full_body",
    view: Annotated[str, typer.Option(help="Expected view angle: front, back, side.")] = "front",
    provider: Annotated[str | None, typer.Option(help="Who judges: LOCAL, AI_CORE or VERTEX.")] = None,
    describe: Annotated[bool, typer.Option("--describe", help="Have a model describe them too.")] = False,
    tenant: Annotated[str, typer.Option(help="Tenant to act for.")] = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what pictures show of people, and whether that is the expected shot."""
    contents = [content(file, MAX_INLINE_BYTES) for file in files]
    answers: list[dict[str, Any]] = []
    with Gateway.of(DataFolder.choose(data), tenant, ("read", "write")) as gateway:
        for file, picture in zip(files, contents, strict=True):
            asked = {
                "image_data": base64.b64encode(picture).decode(),
                "expected_framing": framing,
                "expected_view_angle": view,
                "include_descriptions": describe,
            }
            chosen = {} if provider is None else {"provider": provider}
            answers.append({"file": str(file), **gateway.call("POST", _PATH, params=chosen, json=asked)})
    if as_json:
        out.print_json(json.dumps(answers))
    else:
        out.print(_table(answers))
        for answer in answers:
            for name in ("garment_description", "subject_description", "scene_description", "error"):
                if answer[name]:
                    out.print(f"{answer['file']}: {answer[name]}", markup=False)
    if failed := [answer["file"] for answer in answers if not answer["success"]]:
        raise CliError(f"Not evaluated: {', '.join(failed)}")


def _table(answers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("file", "people", "framing", "view", "sure", "expected", "gender", "anatomy", "collage"):
        table.add_column(title, no_wrap=True)
    for answer in answers:
        sure = answer["confidence_summary"]
        table.add_row(
            answer["file"],
            _shown(answer["number_of_people"]),
            _shown(answer["detected_framing"]),
            _shown(answer["detected_view_angle"]),
            _NOTHING if sure is None else f"{sure:.2f}",
            _shown(answer["matches_expected"]),
            _shown(answer["detected_gender"]),
            ", ".join(answer["anatomy_issues"] or ()) or _shown(answer["anatomy_correct"]),
            _shown(answer["collage_detected"]),
        )
    return table


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _NOTHING if value is None else str(value)
