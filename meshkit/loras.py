"""Where LoRAs lie, and the paths that callers name them by."""

from __future__ import annotations

from typing import Final

from meshkit.paths import normalise_path

LORA_FOLDER: Final = "loras"
"""Folder of a tenant's objects."""
PRINTED_ROOT: Final = "/data/models/loras/"
"""What answers print before a LoRA's path; no such folder exists anywhere."""


def library_path(text: str) -> str:
    """Return the path of a LoRA in the library: `styles/ink.safetensors`.

    Args:
        text: The path as a caller names it, alone or as `file_path` prints it.

    Raises:
        MeshError: `INVALID` for a path that leads elsewhere.
    """
    return normalise_path(text.removeprefix(PRINTED_ROOT))


def object_path(text: str) -> str:
    """Return the path of its object.

    Raises:
        MeshError: `INVALID` for a path that leads elsewhere.
    """
    return f"{LORA_FOLDER}/{library_path(text)}"
