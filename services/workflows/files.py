"""Files that come inside of a definition: they become objects of the workflow, so that rows hold paths and never bytes.

They are checked as those of a task are, written before the workflow and noted for the sweeper before that, so that a
process may die at any moment: what no workflow owns is deleted later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from atelier.workflows.v1 import workflow_pb2
from google.protobuf.struct_pb2 import Value

from meshkit.catalog import Form, type_numbered
from meshkit.errors import ErrorKind, MeshError, invalid
from meshkit.images.checks import ImageChecks
from meshkit.images.data import decode_data
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path
from meshkit.staging import STAGING_SCHEME, is_staged
from meshkit.stored_bytes import StoredBytes
from services.workflows.fields import TRAINING_UPLOADS, is_file, trains

FOLDER = "workflows"
_REMOTE = ("http://", "https://")

Definition = workflow_pb2.WorkflowStepDefinition


@dataclass(frozen=True, slots=True)
class StepFile:
    """A file that passed.

    Attributes:
        path: Where it will lie.
        data: Its bytes, where they came in the request.
        staged: Upload to copy, where it was staged.
        content_type: Media type of the object.
    """

    path: str
    data: bytes | None = None
    staged: str | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class _Member:
    """A text of a step's `config` that may be a file.

    Attributes:
        value: Holds the text; it is given the path of the file.
        where: Path of the member in the request, for errors.
        stem: Path of the object, without an extension.
    """

    value: Value
    where: str
    stem: str


def folder_of(workflow_id: UUID) -> str:
    """Folder of a workflow's own objects, ending in `/`."""
    return f"{FOLDER}/{workflow_id}/"


def may_be_file(text: str) -> bool:
    """Whether a text is a file, or might be one: base64 is not told from a short path by its look."""
    if text[:8].lower().startswith(_REMOTE):
        return False
    return is_file(text) or "." not in text.rpartition("/")[2]


def holds_files(workflow: workflow_pb2.CreateWorkflow) -> bool:
    """Whether a definition holds what may be a file."""
    return any(may_be_file(member.value.string_value) for member in _members(workflow, ""))


def refuse_files(workflow: workflow_pb2.CreateWorkflow) -> None:
    """Refuse a definition that holds files.

    Raises:
        MeshError: `INVALID` naming the first of them.
    """
    for member in _members(workflow, ""):
        if is_file(member.value.string_value):
            text = "must be a path in storage or an address: this installation's workflows have no object store"
            raise invalid(member.where, text, "inline_file")


class StepFiles:
    """Takes the files of definitions over.

    Args:
        objects: The object store.
        checks: Judges images.
        stored: Knows how much a tenant stores.
    """

    def __init__(self, objects: ObjectStore, checks: ImageChecks, stored: StoredBytes) -> None:
        self._objects = objects
        self._checks = checks
        self._stored = stored

    async def accept(self, workflow: workflow_pb2.CreateWorkflow, tenant: str, workflow_id: UUID) -> Sequence[StepFile]:
        """Check the files of a definition and put their future paths in their places.

        Args:
            workflow: The definition, checked.
            tenant: Tenant of the workflow.
            workflow_id: Identifier it will have.

        Returns:
            The files, not yet written.

        Raises:
            MeshError: `INVALID` with the member's path, `EXHAUSTED` for a tenant that stores too much.
        """
        found = []
        for member in list(_members(workflow, folder_of(workflow_id))):
            file = await self._accepted(member, tenant)
            if file is not None:
                self._stored.check(tenant, len(file.data or b""))
                member.value.string_value = file.path
                found.append(file)
        for position, step in enumerate(workflow.steps):
            _keep_in_place(step, f"workflow.steps[{position}].config")
        return found

    async def write(self, tenant: str, files: Sequence[StepFile]) -> None:
        """Write the objects of accepted files."""
        for file in files:
            if file.data is not None:
                await self._objects.put(tenant, file.path, file.data, file.content_type)
            elif file.staged is not None:
                await self._objects.copy(tenant, file.staged, file.path)

    async def settle(self, tenant: str, files: Sequence[StepFile]) -> None:
        """Delete the uploads that were taken over, once the workflow is committed."""
        for file in files:
            if file.staged is not None:
                await self._objects.delete(tenant, file.staged)

    async def discard(self, tenant: str, workflow_id: UUID) -> Sequence[str]:
        """Delete all that lies in a workflow's folder; return the paths."""
        return await self._objects.delete_prefix(tenant, folder_of(workflow_id))

    async def _accepted(self, member: _Member, tenant: str) -> StepFile | None:
        text = member.value.string_value
        if text.startswith(STAGING_SCHEME):
            return await self._taken_over(member, tenant)
        if not may_be_file(text):
            return None
        try:
            data = decode_data(text, path=member.where)
            info = await self._checks.check(tenant, data, path=member.where)
        except MeshError as error:
            # A short text that is no picture is a path in storage, which the step's task will be asked for.
            if error.kind is ErrorKind.INVALID and not is_file(text):
                return None
            raise
        return StepFile(f"{member.stem}.{info.format.lower()}", data=data, content_type=info.content_type)

    async def _taken_over(self, member: _Member, tenant: str) -> StepFile:
        staged = normalise_path(member.value.string_value.removeprefix(STAGING_SCHEME))
        info = await self._objects.stat(tenant, staged) if is_staged(staged) else None
        if info is None:
            raise invalid(member.where, "The upload does not exist any more", "unknown_upload")
        self._stored.check(tenant, info.size)
        extension = info.content_type.partition("/")[2] or "bin"
        return StepFile(f"{member.stem}.{extension}", staged=staged, content_type=info.content_type)


def _members(workflow: workflow_pb2.CreateWorkflow, folder: str) -> Iterator[_Member]:
    for position, step in enumerate(workflow.steps):
        for field in _uploads(step):
            if field not in step.config.fields:
                continue
            value = step.config.fields[field]
            where, stem = f"workflow.steps[{position}].config.{field}", f"{folder}{position}-{field}"
            if value.WhichOneof("kind") == "string_value":
                yield _Member(value, where, stem)
            for index, item in enumerate(value.list_value.values if value.HasField("list_value") else ()):
                if item.WhichOneof("kind") == "string_value":
                    yield _Member(item, f"{where}[{index}]", f"{stem}-{index}")


def _uploads(step: Definition) -> Sequence[str]:
    """Members of a step's `config` that take a file itself."""
    if trains(step):
        return TRAINING_UPLOADS
    sources = (source for image in type_numbered(step.task_type).inputs for source in image.sources)
    return [source.field for source in sources if Form.DATA in source.accepts]


def _keep_in_place(step: Definition, where: str) -> None:
    """Move files from members that take data alone to the one of their input that takes a path.

    What counts stays what counts: of several sources the first.
    """
    mapped = {mapping.to_field for mapping in step.input_mappings}
    fields = step.config.fields
    for image in () if trains(step) else type_numbered(step.task_type).inputs:
        named = [one.field for one in image.sources if one.field in fields or one.field in mapped]
        for source in image.sources:
            if source.field not in fields or Form.PATH in source.accepts or source.field in mapped:
                continue
            if len(named) > 1 and (image.exclusive or image.kept.field in mapped):
                other = next(name for name in named if name != source.field)
                raise invalid(f"{where}.{source.field}", f"excludes {other}", "one_source")
            moved = Value()
            moved.CopyFrom(fields[source.field])
            del fields[source.field]
            if named[0] != source.field:
                continue
            target = fields[image.kept.field]
            if image.many and not source.many:
                target.list_value.values.add().CopyFrom(moved)
                del target.list_value.values[:-1]
            else:
                target.CopyFrom(moved)
