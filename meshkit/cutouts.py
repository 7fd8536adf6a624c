"""The networks that remove backgrounds, by their documented names: which ship, and which an installation adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from atelier.tasks.v1.providers_pb2 import LocalProviderConfig
from buf.validate import validate_pb2
from pydantic import BeforeValidator
from pydantic_settings import NoDecode

SHIPPED = ("u2net", "u2netp")
"""Networks whose weights come with Python packages, the default first."""
# It is asked by points in the picture, which no member of a task carries.
_NOT_RUN = "sam"


def documented() -> tuple[str, ...]:
    """Return the names that the contract takes."""
    field = LocalProviderConfig.DESCRIPTOR.fields_by_name["rembg_model"]
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return tuple(getattr(rules.string, "in"))


def served(added: Iterable[str]) -> tuple[str, ...]:
    """Return the names that an installation serves, those that ship first."""
    return (*SHIPPED, *added)


def _parse(value: object) -> object:
    if not isinstance(value, str):
        return value
    files: dict[str, str] = {}
    able = [name for name in documented() if name not in (*SHIPPED, _NOT_RUN)]
    for part in (part.strip() for part in value.split(",")):
        name, _, path = (piece.strip() for piece in part.partition("="))
        if part and (name not in able or not path):
            raise ValueError(f"{part!r} is not NAME=FILE with a name of {', '.join(able)}")
        if part:
            files[name] = path
    return files


CutoutFiles = Annotated[dict[str, str], NoDecode, BeforeValidator(_parse)]
"""Files of networks by name, written as people do in an environment: `silueta=/models/silueta.onnx`."""
DESCRIPTION = "Networks for cut-outs beside those that ship, as ONNX files: `silueta=/models/silueta.onnx`."
