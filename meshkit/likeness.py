"""Networks that pictures are compared by, beside SSIM: their names, and how an installation names their weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

NETWORKS = ("lpips", "dists")
"""Their names. No package ships weights of them."""


def _parse(value: object) -> object:
    if not isinstance(value, str):
        return value
    files: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, path = (piece.strip() for piece in part.partition("="))
        if name not in NETWORKS or not path.endswith(".safetensors"):
            raise ValueError(f"{part!r} is not NAME=FILE.safetensors with a name of {', '.join(NETWORKS)}")
        files[name] = path
    return files


NetworkFiles = Annotated[dict[str, str], NoDecode, BeforeValidator(_parse)]
"""Files of weights by network, as people write them in an environment: `lpips=/models/lpips.safetensors`."""
DESCRIPTION = (
    "Weights of networks that results are compared by, beside SSIM: "
    "`lpips=/models/lpips.safetensors,dists=/models/dists.safetensors`. Tasks and workers read it."
)
