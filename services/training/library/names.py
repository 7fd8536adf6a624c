"""Names of files: what callers send, and what the library makes of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshkit.errors import invalid

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
EXTENSIONS = (SAFETENSORS, *PICKLES)
NO_TYPE = "no_type_provided"
ENTITY_TYPES = ("clothes", "identities", "product", "styles")
SHARED_ENTITY_TYPES = (*ENTITY_TYPES, "faces")
FOLDERS = (*SHARED_ENTITY_TYPES, NO_TYPE)
_MAX_STEM = 120
_MAX_BYTES = 255
_MAX_VERSIONS = 10_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def folder_of(entity_type: str | None, *, shared: bool) -> str:
    """Return the folder of a type.

    Raises:
        MeshError: `INVALID` for one that does not exist.
    """
    allowed = SHARED_ENTITY_TYPES if shared else ENTITY_TYPES
    named = entity_type or NO_TYPE
    if named != NO_TYPE and named not in allowed:
        raise invalid("entity_type", f"must be one of {', '.join(allowed)}", "enum")
    return named


def extension_of(filename: str) -> str:
    """Return a name's extension in lower case.

    Raises:
        MeshError: `INVALID` for one that the library does not take.
    """
    found = next((one for one in EXTENSIONS if filename.lower().endswith(one)), None)
    if found is None:
        raise invalid("file", f"must have one of the extensions {', '.join(EXTENSIONS)}", "file_extension")
    return found


def safe_name(filename: str) -> str:
    """Return a name that is safe everywhere: ASCII letters, digits, `_` and `-`."""
    base = re.split(r"[/\\]", filename)[-1]
    stem = base[: -len(extension_of(base))] if base.lower().endswith(EXTENSIONS) else base
    return (_UNSAFE.sub("_", stem).strip("_-")[:_MAX_STEM].strip("_-") or "lora") + SAFETENSORS


def exact_name(filename: str) -> str:
    """Return the name that a caller insists on; what was converted ends in `.safetensors` all the same.

    Raises:
        MeshError: `INVALID` for one that leads elsewhere or cannot be a file's.
    """
    stem = filename[: -len(extension_of(filename))]
    if not stem.strip(". ") or not stem.isprintable() or any(one in stem for one in "/\\%"):
        raise invalid("file", "must have a name without folders, percent signs and control characters", "file_name")
    name = stem + SAFETENSORS
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        raise invalid("file", f"must have a name of at most {_MAX_BYTES} bytes", "string_too_long")
    return name


def versions(name: str) -> Iterator[str]:
    """Yield a name, and then its versions: `a.safetensors`, `a_v2.safetensors`, `a_v3.safetensors`."""
    yield name
    stem = name.removesuffix(SAFETENSORS)
    for version in range(2, _MAX_VERSIONS):
        yield f"{stem}_v{version}{SAFETENSORS}"
