"""`atelier train`: from photos to a LoRA, with options made from the contract."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from atelier.options.v1 import options_pb2
from atelier.training.v1 import training_pb2, training_service_pb2
from rich.progress import track

from atelier_cli.client import Gateway
from atelier_cli.commands.mesh import Data
from atelier_cli.commands.training import Output, Watch, again, follow_training
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.folder import DataFolder
from atelier_cli.inputs import LocalFiles, pictures
from atelier_cli.options import member_value, option_of
from atelier_cli.origin import default_origin
from atelier_cli.taskforms import plain_members
from atelier_cli.terminal import err, out
from atelier_cli.tokens import DEFAULT_TENANT
from atelier_cli.trainings import PATH

_SOURCES: Final = "source_images"
_TRIGGER: Final = "trigger_word"
_ORIGIN: Final = "origin_instance"
_BASE: Final = "base_model_path"
_DEFAULT_BASE: Final = json.loads(
    training_pb2.CreateTraining.DESCRIPTOR.fields_by_name[_BASE]
    .GetOptions()
    .Extensions[options_pb2.field]
    .default_value
)
# Members of the training itself, and what a request says beside it.
_MEMBERS: Final = tuple(plain_members(training_pb2.CreateTraining.DESCRIPTOR, {_SOURCES, _TRIGGER}))
_BESIDE: Final = tuple(plain_members(training_service_pb2.CreateTrainingRequest.DESCRIPTOR, {"training"}))


def train(**values: Any) -> None:
    """Train a LoRA on pictures, and print its identifier; with --watch, where the adapter is in the end."""
    given = pictures(values["files"])
    output: Path | None = values["output"]
    tenant: str = values["tenant"]
    folder = DataFolder.choose(values["data"])
    watched = values["watch"] or output is not None
    body: dict[str, Any] = {_TRIGGER: values[_TRIGGER], _ORIGIN: default_origin()}
    body |= _chosen(_MEMBERS, values)
    if _BASE not in body and (base := _only_base(folder)) is not None:
        body[_BASE] = base
    with Gateway.of(folder, tenant) as gateway:
        body[_SOURCES] = _sent(gateway, given)
        training = gateway.call("POST", PATH, json=body, params=_chosen(_BESIDE, values))
        out.print(training["id"])
        if watched:
            place = output or _beside(values["files"], values[_TRIGGER])
            follow_training(gateway, training["id"], place, again(training["id"], place, tenant, folder))


def _only_base(folder: DataFolder) -> str | None:
    """Return the base model that the mesh on this machine trains, where it trains one and that one is no default.

    Raises:
        CliError: It trains several, and not the default one.
    """
    if os.environ.get("ATELIER_URL"):
        return None  # another machine's mesh says itself what it trains
    record = folder.record() if folder.is_running() else None
    trained = record.trained if record is not None else ()
    if not trained or _DEFAULT_BASE in trained:
        return None
    if len(trained) > 1:
        raise CliError(f"Choose the model to train with --base-model-path: {', '.join(trained)}.", ExitCode.USAGE)
    err.print(f"Trains {trained[0]}, the base model that this mesh has.", markup=False)
    return trained[0]


def _chosen(members: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        member.name: member_value(member, values[member.name])
        for member in members
        if values[member.name] not in (None, [])
    }


def _sent(gateway: Gateway, given: Sequence[str]) -> list[str]:
    """Store the pictures that are files, and return the sources; what the mesh does not take is left out.

    Raises:
        CliError: None is left, or the mesh cannot be reached.
    """
    local = LocalFiles(gateway)
    sources: list[str] = []
    for value in track(given, "sending", console=err, transient=True, disable=not err.is_terminal):
        try:
            sources.append(local.stored(value))
        except CliError as error:
            if error.code is not ExitCode.FAILED:
                raise
            err.print(f"Left out: {error.sentence}", markup=False)
    if not sources:
        raise CliError("None of the pictures can be trained on.")
    return list(dict.fromkeys(sources))


def _beside(files: Sequence[str], trigger: str) -> Path:
    """Return the folder for samples: beside the pictures' own where they are of one, else here."""
    if len(files) == 1 and (place := Path(files[0]).expanduser()).is_dir():
        place = place.absolute()
        return place.with_name(f"{place.name}-training")
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in trigger)
    return Path(f"{kept}-training")


def _signature() -> inspect.Signature:
    files = "Pictures to learn from: folders, files, patterns, addresses, or paths in storage."
    word = "Word that calls what is learned; a prompt names it to have it in the picture."
    parameters: dict[str, tuple[Any, Any]] = {
        "files": (Annotated[list[str], typer.Argument(help=files, metavar="FOLDER|FILE...")], inspect.Parameter.empty),
        _TRIGGER: (Annotated[str, typer.Option("--trigger-word", help=word)], inspect.Parameter.empty),
        **{member.name: option_of(member) for member in (*_MEMBERS, *_BESIDE)},
        "watch": (Watch, False),
        "output": (Output, None),
        "tenant": (Annotated[str, typer.Option(help="Tenant to act for.")], DEFAULT_TENANT),
        "data": (Data, None),
    }
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )


train.__signature__ = _signature()  # type: ignore[attr-defined] # typer reads it
train.__annotations__ = {name: one.annotation for name, one in _signature().parameters.items()}
