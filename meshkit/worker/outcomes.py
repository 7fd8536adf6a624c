"""How what a handler returned or raised is told: one `ChildDone`, for both kinds of runners."""

from __future__ import annotations

import secrets

from atelier.inference.v1.child_pb2 import ChildCancelled, ChildDone, ChildFailure, ChildFile, ChildOutput
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_INTERNAL, ERROR_CATEGORY_VALIDATION

from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.worker.handlers import Output, OutputFile, TaskCancelled, TaskFailed

_log = get_logger(__name__)


def done_of(outcome: Output | Exception) -> ChildDone:
    """Return the end of a job; a library's own text goes to the log and not to the caller."""
    if isinstance(outcome, Output):
        files = [_file(file) for file in outcome.files]
        output = ChildOutput(result=outcome.result, files=files, errors=outcome.errors)
        return ChildDone(output=output, device_seconds=outcome.device_seconds)
    if isinstance(outcome, TaskCancelled):
        return ChildDone(cancelled=ChildCancelled())
    return ChildDone(failure=_failure(outcome))


def _file(file: OutputFile) -> ChildFile:
    return ChildFile(name=file.name, content_type=file.content_type, field=file.field or "", index=file.index)


def _failure(error: Exception) -> ChildFailure:
    if isinstance(error, TaskFailed):
        return ChildFailure(
            message=error.message,
            category=error.category,
            retryable=error.retryable,
            retry_after_seconds=error.retry_after,
        )
    if isinstance(error, MeshError) and error.kind is ErrorKind.INVALID:
        return ChildFailure(message=error.message, category=ERROR_CATEGORY_VALIDATION)
    error_id = secrets.token_hex(8)
    _log.error("task_crashed", error_id=error_id, exc_info=error)
    message = f"The worker failed to execute the task (error {error_id})."
    return ChildFailure(message=message, category=ERROR_CATEGORY_INTERNAL, retryable=True)
