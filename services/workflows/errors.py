"""Errors of the workflows service, as its callers see them."""

from __future__ import annotations

from meshkit.errors import MeshError, conflict, not_found


def workflow_not_found(workflow_id: object) -> MeshError:
    """No such workflow for this caller."""
    return not_found("Workflow", str(workflow_id))


def illegal_transition(current: str, action: str) -> MeshError:
    """Build the error: the workflow's state does not allow what was asked."""
    return conflict(f"A workflow that is {current} cannot be {action}", reason="ILLEGAL_TRANSITION")


def cleaned_up() -> MeshError:
    """Build the error: the workflow was cleaned up: the files that its steps would read are gone."""
    return conflict("The workflow was cleaned up", reason="WORKFLOW_DELETED")
