"""Errors of the library, as its callers see them."""

from __future__ import annotations

from meshkit.errors import MeshError, conflict, not_found


def lora_not_found(path: object) -> MeshError:
    """No such LoRA for this caller."""
    return not_found("LoRA", str(path))


def name_is_taken(path: str) -> MeshError:
    """Build the error: another file has the name, and the caller wants no other one."""
    return conflict(f"A LoRA {path} exists already", reason="LORA_EXISTS")


def too_many_versions(path: str) -> MeshError:
    """Build the error: there are thousands of files of this name."""
    return conflict(f"There are too many versions of {path}; choose another name", reason="LORA_EXISTS")
