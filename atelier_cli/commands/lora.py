"""`atelier lora`: shows the library of LoRAs, takes files into it, deletes and restores them."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from atelier_cli.client import Gateway, segment
from atelier_cli.commands.mesh import Data
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.groups import CommandGroup
from atelier_cli.terminal import out
from atelier_cli.tokens import DEFAULT_TENANT

app = typer.Typer(cls=CommandGroup, help="Look at LoRAs, upload, delete and restore them.", no_args_is_help=True)

LoraPath = Annotated[str, typer.Argument(help="Path in the library, such as styles/ink.safetensors.")]
Tenant = Annotated[str, typer.Option(help="Tenant to act for.")]
EntityType = Annotated[
    str | None,
    typer.Option("--entity-type", help="What it shows: clothes, identities, product, styles; shared ones faces too."),
]

_PATH: Final = "/api/v1/lora/"
_ADMIN: Final = "/api/v1/admin/lora"
_ADMIN_SCOPES: Final = ("read", "write", "admin")
_PRINTED_BIN: Final = "/data/bin/models/loras/"


@app.command("list")
def list_loras(
    *,
    entity_type: EntityType = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those of the bin.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Skip this many.")] = 0,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the LoRAs that the tenant may use, newest first."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        chosen = "true" if deleted else None
        found = gateway.listed(_PATH, entity_type=entity_type, deleted=chosen, skip=skip, limit=limit)
    if as_json:
        out.print_json(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("path", "trigger word", "base model", "rank", "layout", "MB", "shared"):
        table.add_column(title, no_wrap=title == "path")
    for one in found:
        table.add_row(*_row(one, deleted=deleted))
    out.print(table)


@app.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(help="The file: .safetensors, .ckpt, .pt, .pth or .bin.")],
    *,
    entity_type: EntityType = None,
    shared: Annotated[bool, typer.Option("--shared", help="For all tenants; needs the scope admin.")] = False,
    exact_name: Annotated[
        bool, typer.Option("--exact-name", help="Keep the name as it is; fail where it is taken.")
    ] = False,
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Take a LoRA into the library, and print the path that tasks name it by."""
    if not file.is_file():
        raise CliError(f"There is no file {file}.", ExitCode.USAGE)
    fields = {"use_safe_filename": "false" if exact_name else "true"}
    if entity_type is not None:
        fields["entity_type"] = entity_type
    scopes = _ADMIN_SCOPES if shared else ("read", "write")
    with Gateway.of(DataFolder.choose(data), tenant, scopes=scopes) as gateway:
        shown = gateway.upload(f"{_ADMIN}/upload" if shared else f"{_PATH}upload", file, fields)
    # Not by the console, which would break and colour it.
    typer.echo(shown["partial_path"])


@app.command("show")
def show(path: LoraPath, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Print what is known of a LoRA as JSON."""
    with Gateway.of(DataFolder.choose(data), tenant) as gateway:
        out.print_json(json.dumps(gateway.call("GET", _PATH + _parts(path))))


@app.command("delete")
def delete(path: LoraPath, tenant: Tenant = DEFAULT_TENANT, data: Data = None) -> None:
    """Move a LoRA to the bin, and print its path there."""
    with Gateway.of(DataFolder.choose(data), tenant, scopes=_ADMIN_SCOPES) as gateway:
        shown = gateway.call("DELETE", _ADMIN, json={"partial_path": path})
    typer.echo(shown["bin_path"].removeprefix(_PRINTED_BIN))


@app.command("restore")
def restore(
    path: Annotated[str, typer.Argument(help="Path in the bin, as its deletion has printed it.")],
    tenant: Tenant = DEFAULT_TENANT,
    data: Data = None,
) -> None:
    """Bring a LoRA back from the bin, and print its path in the library."""
    with Gateway.of(DataFolder.choose(data), tenant, scopes=_ADMIN_SCOPES) as gateway:
        shown = gateway.call("POST", f"{_ADMIN}/restore", json={"bin_path": path})
    typer.echo(shown["partial_path"])


def _parts(path: str) -> str:
    return "/".join(segment(part) for part in path.split("/"))


def _row(one: dict[str, Any], *, deleted: bool) -> tuple[str, ...]:
    path = one["bin_path"].removeprefix(_PRINTED_BIN) if deleted else one["partial_path"]
    return (
        path,
        one["trigger_word"] or "",
        one["base_model"] or "",
        str(one["rank"] or ""),
        one["layout"] or "",
        f"{one['file_size'] / 1e6:.1f}",
        "yes" if one["shared"] else "",
    )
