"""`atelier generate`: a picture from a prompt."""

import base64
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from atelier_cli.client import Gateway
from atelier_cli.commands.follow import (
    cancel_all,
    cancelled_on_interrupt,
    follow_all,
    require_completed,
    tell_warnings,
)
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import MAX_INLINE_BYTES, content
from atelier_cli.folder import DataFolder
from atelier_cli.origin import default_origin
from atelier_cli.results import require_folder
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

# The slot that a LoRA of each library folder is for; a second product has a slot of its own.
_SLOTS: Final = {
    "identities": ("subject",),
    "product": ("product", "product2"),
    "clothes": ("product", "product2"),
    "styles": ("style",),
}
_ALL_SLOTS: Final = ("style", "product", "subject", "product2")


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to save, or a folder; named after the prompt where absent."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA by its path in the library, with a weight: styles/ink.safetensors:0.8. Up to four."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same picture.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the model's own where absent.")] = None,
    count: Annotated[
        int, typer.Option(min=1, max=64, help="Make so many, with seeds from --seed upwards, or drawn ones.")
    ] = 1,
    reference: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Picture to start from.")] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, max=100, help="How much of the reference is kept, in percent.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant to act for.")] = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Make a picture, or several at once, with live progress bars; Ctrl-C cancels them."""
    body: dict[str, Any] = {
        "task_type": "GENERATION",
        "origin_instance": default_origin(),
        "prompt": prompt,
        "seed": seed,
        "width": width,
        "height": height,
        "reference_image_strength": strength,
        **lora_fields(lora or []),
    }
    if steps is not None:
        body["config"] = {"steps": steps}
    if reference is not None:
        body["reference_image_data"] = base64.b64encode(content(reference, MAX_INLINE_BYTES)).decode()
    if strength is not None and math.isnan(strength):
        raise CliError("--strength is a number from 0 to 100.", ExitCode.USAGE)
    body = {name: value for name, value in body.items() if value is not None}
    targets = _targets(prompt, output, count)
    bodies = [body if seed is None else body | {"seed": seed + number} for number in range(count)]
    folder = DataFolder.choose(data)
    _make(lambda: Gateway.of(folder, tenant), bodies, targets)


def _targets(prompt: str, output: Path | None, count: int) -> list[Path]:
    """Return the file of each picture: numbered where there are several."""
    name = f"{re.sub('[^a-z0-9]+', '-', prompt.lower()).strip('-')[:60] or 'picture'}.png"
    if output is not None and not output.suffix and not output.is_file():  # as every other command takes it
        require_folder(output)
    target = output / name if output is not None and output.is_dir() else output or Path(name)
    if not target.absolute().parent.is_dir():
        raise CliError(f"There is no folder {target.parent} to save into.", ExitCode.USAGE)
    if count == 1:
        return [target]
    digits = len(str(count))
    return [target.with_name(f"{target.stem}-{number:0{digits}d}{target.suffix}") for number in range(1, count + 1)]


def _make(open_gateway: Callable[[], Gateway], bodies: list[dict[str, Any]], targets: list[Path]) -> None:
    """Make pictures at once, save each when it is done, and print where they are.

    Raises:
        CliError: One was refused, in which case none is made; or some failed, and the others are saved.
    """
    ids: list[str] = []
    saved: dict[str, str] = {}
    failures: list[CliError] = []

    def ended(gateway: Gateway, task: dict[str, Any]) -> None:
        target = targets[ids.index(task["id"])]
        try:
            require_completed(task)
        except CliError as error:
            failures.append(error)
            return
        gateway.download(task["result_image_path"], target)
        tell_warnings(task)
        saved[task["id"]] = f"{target}  (seed {task['seed']}, {task['width']}x{task['height']})"

    with open_gateway() as gateway, cancelled_on_interrupt(gateway, ids):
        try:
            ids.extend(gateway.create(body)["id"] for body in bodies)
        except CliError:
            cancel_all(gateway, ids)
            raise
        titles = dict(
            zip(ids, [target.name for target in targets] if len(ids) > 1 else [bodies[0]["prompt"][:60]], strict=True)
        )
        try:
            follow_all(open_gateway, titles, ended)
        finally:
            for line in (saved[each] for each in ids if each in saved):
                out.print(line, markup=False)
    if failures:
        others = f" {len(failures)} of {len(ids)} pictures failed." if len(ids) > 1 else ""
        raise CliError(failures[0].sentence + others)


def lora_fields(loras: list[str]) -> dict[str, Any]:
    """Put each `PATH[:weight]` into the slot of its library folder, or into the next free one.

    Raises:
        CliError: There are too many, or a weight is no number.
    """
    fields: dict[str, Any] = {}
    for text in loras:
        path, colon, weight = text.rpartition(":")
        if not colon:
            path, weight = text, "1"
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise CliError(f"{weight!r} in --lora {text} is not a weight.", ExitCode.USAGE)
        wanted = _SLOTS.get(path.partition("/")[0], _ALL_SLOTS)
        free = [slot for slot in wanted if f"{slot}_model_path" not in fields]
        if not free:
            raise CliError(f"There is no free slot for the LoRA {path}.", ExitCode.USAGE)
        fields[f"{free[0]}_model_path"] = path
        fields[f"{free[0]}_lora_weight"] = value
    return fields
