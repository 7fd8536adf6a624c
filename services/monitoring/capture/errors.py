"""What capture refuses."""

from __future__ import annotations

from meshkit.errors import ErrorKind, MeshError, not_found


def camera_not_found(camera_id: str) -> MeshError:
    """Build the error: no such camera for this caller."""
    return not_found("Camera", camera_id[:255])


def camera_has_folder(camera_id: str) -> MeshError:
    """Build the error: a camera whose folder is there would come again at once."""
    return MeshError(
        ErrorKind.CONFLICT, f"The folder of camera {camera_id} is there: disable it instead", reason="CAMERA_HAS_FOLDER"
    )


def photo_not_found(photo_id: object) -> MeshError:
    """Build the error: no such photo for this caller."""
    return not_found("Photo", str(photo_id))


def batch_not_found(batch_id: object) -> MeshError:
    """Build the error: no such batch for this caller."""
    return not_found("Batch", str(batch_id))


def event_not_found(event_id: object) -> MeshError:
    """Build the error: no such event for this caller."""
    return not_found("Event", str(event_id))


def alert_not_found(alert_id: object) -> MeshError:
    """Build the error: no such alert for this caller."""
    return not_found("Alert", str(alert_id))


def alert_is_dismissed(alert_id: object) -> MeshError:
    """Build the error: nobody takes care of what was dismissed."""
    return MeshError(ErrorKind.CONFLICT, f"Alert {alert_id} was dismissed", reason="ALERT_DISMISSED")


def bad_rules(sentence: str) -> MeshError:
    """Build the error: capture was started with rules that do not hold."""
    return MeshError(ErrorKind.INVALID, sentence, reason="CAPTURE_RULES")


def bad_workflow(sentence: str) -> MeshError:
    """Build the error: capture was started with a workflow that does not hold."""
    return MeshError(ErrorKind.INVALID, sentence, reason="CAPTURE_WORKFLOW")


def no_camera_root() -> ValueError:
    """Build the error: capture was started without folders to watch."""
    return ValueError("ATELIER_CAMERA_ROOT names no folder: there is nothing to watch")
