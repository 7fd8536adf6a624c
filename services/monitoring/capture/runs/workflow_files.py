"""The workflow that a file holds, the request that it becomes, and what a run of it has made. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import yaml  # type: ignore[import-untyped]  # ships no types
from atelier.training.v1 import training_pb2
from atelier.workflows.v1 import workflow_pb2
from google.protobuf.json_format import MessageToDict

from meshkit.catalog import TASK_TYPES
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding
from services.monitoring.capture.runs.domain import PhotoRunState, RunRecord

# What stands for the photo in the file; `@` and a name stand for another file beside it.
PHOTO = "@photo"
_MARK = "@"
_CODECS = Codecs()
# What steps may hold, whose contract has to be there before a codec reads it.
_HELD = training_pb2.DESCRIPTOR


class RunFileError(ValueError):
    """The file of the workflow does not hold: a sentence for who set it."""


def parsed(text: str) -> Mapping[str, Any]:
    """Return the workflow that a file holds, as YAML or JSON.

    Raises:
        RunFileError: It holds none, or one without the photo.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunFileError(f"is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RunFileError("holds no object with members")
    if PHOTO not in _texts(found):
        raise RunFileError(f"has no {PHOTO} in a step's config: the workflow would not see the photo")
    message_of(filled(found, dict.fromkeys([PHOTO, *files_of(found)], "a.png")), UUID(int=0), "check", "", "")
    return found


def files_of(definition: Mapping[str, Any]) -> list[str]:
    """Return the texts of a definition that stand for files beside it."""
    return sorted({one for one in _texts(definition) if one.startswith(_MARK) and one != PHOTO and len(one) > 1})


def filled(definition: Any, places: Mapping[str, str]) -> Any:
    """Return a definition with places in storage where files stood."""
    if isinstance(definition, dict):
        return {name: filled(value, places) for name, value in definition.items()}
    if isinstance(definition, list):
        return [filled(value, places) for value in definition]
    return places.get(definition, definition) if isinstance(definition, str) else definition


def message_of(
    definition: Mapping[str, Any], photo_id: UUID, instance: str, zone: str, tenant: str
) -> workflow_pb2.CreateWorkflow:
    """Return the request of a definition.

    Raises:
        RunFileError: It has members that no workflow has, or values of another kind.
    """
    body = json.loads(json.dumps(definition, default=str)) | {
        "origin_instance": instance,
        "origin_reference": str(photo_id),
    }
    body |= {"origin_zone": zone} if zone else {}
    body |= {"origin_tenant_id": tenant} if tenant else {}
    message, decoding = workflow_pb2.CreateWorkflow(), Decoding(strict=True)
    _CODECS.of(workflow_pb2.CreateWorkflow.DESCRIPTOR).decode(message, body, (), decoding)
    if decoding.violations:
        told = "; ".join(f"{'.'.join(map(str, one.loc))}: {one.msg}" for one in decoding.violations)
        raise RunFileError(f"is no workflow: {told}")
    return message


def ended(run: RunRecord, workflow: workflow_pb2.WorkflowPublic) -> RunRecord | None:
    """Return a run whose workflow has ended; None where it has not."""
    completed = workflow.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    if completed or workflow.status in {workflow_pb2.WORKFLOW_STATUS_FAILED, workflow_pb2.WORKFLOW_STATUS_CANCELLED}:
        error = None if completed else workflow.error_message or "The workflow was cancelled."
        state = PhotoRunState.COMPLETED if completed else PhotoRunState.FAILED
        results = [path for step in workflow.steps for path in _results(step)]
        return RunRecord(run.photo_id, run.stored_path, run.path, state, UUID(workflow.id), error, results)
    return None


def _results(step: workflow_pb2.WorkflowStepPublic) -> Iterator[str]:
    known = TASK_TYPES.get(step.task_type)
    result = MessageToDict(step.result)
    parts = result["items"] if isinstance(result.get("items"), list) else [result]
    for part in parts if known is not None else ():
        for output in known.outputs if known is not None and isinstance(part, dict) else ():
            value = part.get(output.field)
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
