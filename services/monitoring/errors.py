"""What the monitoring service refuses."""

from __future__ import annotations

from collections.abc import Sequence

from meshkit.errors import ErrorKind, MeshError, bad_request, unavailable


def bad_worker_name(name: str) -> MeshError:
    """Build the error: no loop can be called so."""
    return bad_request(
        f"Invalid worker name {name[:64]!r}: it must begin with a letter and have letters, digits and underscores alone"
    )


def no_such_worker(name: str) -> MeshError:
    """Build the error: there is no such loop."""
    return MeshError(
        ErrorKind.NOT_FOUND, f"Worker '{name}' not found", reason="WORKER_NOT_FOUND", metadata={"id": name}
    )


def bad_breaker_name() -> MeshError:
    """Build the error: no breaker can be called so."""
    return bad_request("Invalid name: it must have 1 to 64 letters, digits, underscores and hyphens")


def no_such_breaker(name: str, names: Sequence[str]) -> MeshError:
    """Build the error: there is no such breaker; it names those that there are."""
    valid = ", ".join(names) or "none"
    return MeshError(
        ErrorKind.NOT_FOUND,
        f"Circuit breaker '{name}' not found. Valid names: {valid}",
        reason="CIRCUIT_BREAKER_NOT_FOUND",
        metadata={"id": name},
    )


def supervisor_not_running() -> MeshError:
    """Build the error: loops can be told nothing right now."""
    return unavailable("The supervisor is not running: NATS does not answer", reason="SUPERVISOR_NOT_RUNNING")
