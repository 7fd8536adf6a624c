"""Errors of the training service, as its callers and trainers see them."""

from __future__ import annotations

from meshkit.errors import MeshError, conflict, not_found


def training_not_found(training_id: object) -> MeshError:
    """No such training for this caller."""
    return not_found("Training", str(training_id))


def training_has_ended(status: str, action: str) -> MeshError:
    """Build the error: the training's state does not allow what was asked."""
    return conflict(f"A training that is {status} cannot be {action}", reason="ILLEGAL_TRANSITION")


def training_goes_on() -> MeshError:
    """Build the error: only what has ended can be continued."""
    return conflict("The training has not ended; wait for its end, or cancel it", reason="ILLEGAL_TRANSITION")


def training_is_needed() -> MeshError:
    """Build the error: something of a training that has ended is still to come."""
    return conflict(
        "Another training goes on from this one, or a webhook of it is still to be delivered", reason="TRAINING_NEEDED"
    )


def nothing_to_continue() -> MeshError:
    """Build the error: a training has left neither a state nor an adapter to go on from."""
    return conflict("The training has kept no state and no adapter to go on from", reason="NOTHING_KEPT")


def state_is_gone() -> MeshError:
    """Build the error: the state of a training was deleted for its age while another was to go on from it."""
    return conflict("The state of the training was deleted meanwhile; continue it again", reason="STATE_GONE")


def attempt_is_old() -> MeshError:
    """Build the error: another attempt has taken the training over."""
    return conflict("Another attempt has taken this training over", reason="LEASE_LOST")


def attempt_has_ended() -> MeshError:
    """Build the error: the training has ended, and no attempt goes on with it."""
    return conflict("The training of this attempt has ended", reason="TASK_ENDED")


def not_prepared() -> MeshError:
    """Build the error: what was reported needs a dataset, and none was noted."""
    return conflict("The training has no dataset yet", reason="NOT_PREPARED")
