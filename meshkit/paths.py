"""Paths of objects, and the keys of a tenant's objects."""

from __future__ import annotations

from meshkit.auth import valid_tenant
from meshkit.errors import forbidden, invalid

MAX_PATH_BYTES = 1024
# What a store with files below it can name; S3 itself has no such limit, but a folder of its objects would.
MAX_PART_BYTES = 255
TENANTS = "tenants/"


def normalise_path(path: str) -> str:
    """Return a caller's path in its normal form; refuse one that could lead outside of the tenant.

    Args:
        path: Path with `/` between its parts.

    Returns:
        The path without empty parts, `.` and a trailing slash.

    Raises:
        MeshError: `INVALID` for `..`, NUL and other control characters, a backslash, an absolute or empty path, a long
            one or one with a long part.
    """
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise invalid("path", f"must have at most {MAX_PATH_BYTES} bytes", "string_too_long")
    if path.startswith("/"):
        raise invalid("path", "must not be absolute", "path_absolute")
    if "\\" in path:
        raise invalid("path", "must not contain a backslash", "path_backslash")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in path):
        raise invalid("path", "must not contain control characters", "path_control")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid("path", "must not contain '..'", "path_traversal")
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise invalid("path", f"must have parts of at most {MAX_PART_BYTES} bytes", "string_too_long")
    if not parts:
        raise invalid("path", "must not be empty", "path_empty")
    return "/".join(parts)


def key_of(tenant: str, path: str) -> str:
    """Return the key of a tenant's object.

    Args:
        tenant: The tenant.
        path: A normal path.

    Raises:
        MeshError: `FORBIDDEN` where that is no tenant's name.
    """
    return root_of(tenant) + path


def root_of(tenant: str) -> str:
    """Return what the keys of a tenant begin with.

    Raises:
        MeshError: `FORBIDDEN` where that is no tenant's name.
    """
    if not valid_tenant(tenant):
        raise forbidden("The tenant's name is malformed", reason="BAD_TENANT")
    return f"{TENANTS}{tenant}/"


def normalise_prefix(prefix: str) -> str:
    """Return what paths begin with, in its one form; empty for all of them, and a trailing slash stays.

    Raises:
        MeshError: `INVALID` as `normalise_path`.
    """
    if not prefix:
        return ""
    return normalise_path(prefix) + ("/" if prefix.endswith("/") else "")
