"""LoRA files over HTTP: a form whose file goes through the object store to the library, which judges it.

The file lies in the temporary folder while it comes in, and then below `staging/`; of its bytes a few megabytes are in
memory at any time, however large it is.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from meshkit import tracing
from meshkit.channel import call_metadata
from meshkit.errors import ErrorKind, MeshError, too_large
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore
from meshkit.quotas import TenantShare
from meshkit.scopes import scope_name
from meshkit.staging import STAGING_FOLDER
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Violation
from meshkit.transcoding.errors import RefusedRequestError
from meshkit.transcoding.options import method_rule
from services.gateway.asgi import ClientGoneError, JsonResponse
from services.gateway.auth import Authenticator, GatewayCaller
from services.gateway.middleware import note_route

_log = get_logger(__name__)

SERVICE: Final = "atelier.training.v1.LoraService"
UPLOADS: Final[Mapping[str, str]] = {
    "/api/v1/lora/upload": "UploadLora",
    "/api/v1/admin/lora/upload": "UploadSharedLora",
}
"""The paths, and the methods that take what comes there."""
# What a form has beside its file: a few fields, names and boundaries.
FORM_BYTES: Final = 256 * 1024
_CHUNK_BYTES: Final = 256 * 1024
# The least that S3 takes for a part: a part is what is in memory.
_PART_BYTES: Final = 5 * 1024 * 1024
_MAX_FIELDS: Final = 16
_MEMBERS: Final = ("entity_type", "use_safe_filename")
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on", "t", "y"}), frozenset({"false", "0", "no", "off", "f", "n"})


@dataclass(frozen=True, slots=True)
class UploadMethod:
    """A method that takes a staged file.

    Attributes:
        descriptor: The method.
        call: Makes the call.
    """

    descriptor: MethodDescriptor
    call: Callable[..., Any]


class LoraUploads:
    """The endpoints.

    Args:
        objects: The object store.
        guard: Checks tokens.
        methods: Methods of `UPLOADS` by name.
        calls: Counts what tenants do at once.
        max_bytes: Largest file.
        timeout_seconds: How long a file may take to be judged.
    """

    def __init__(
        self,
        objects: ObjectStore,
        guard: Authenticator,
        methods: Mapping[str, UploadMethod],
        calls: TenantShare,
        *,
        max_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._objects = objects
        self._guard = guard
        self._methods = methods
        self._calls = calls
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds
        self._codecs = Codecs()

    async def upload(self, request: Request) -> Response:
        """Answer `POST` to one of the paths."""
        path = request.url.path.rstrip("/")
        note_route(request.scope, f"POST {path}")
        method = self._methods[UPLOADS[path]]
        scope = scope_name(method_rule(method.descriptor).scope)
        caller = await self._guard.admit(request.headers.get("authorization", ""), scope)
        tenant = caller.tenant
        self._calls.enter(tenant)
        try:
            form = await self._form(request)
            try:
                message = await self._take(method, form, caller)
            finally:
                await form.close()
        except ClientDisconnect:
            raise ClientGoneError from None
        finally:
            self._calls.leave(tenant)
        return JsonResponse(self._codecs.of(message.DESCRIPTOR).encode(message))

    @staticmethod
    async def _form(request: Request) -> FormData:
        if not request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise _missing()
        try:
            return await request.form(max_files=1, max_fields=_MAX_FIELDS)
        except HTTPException as error:
            raise RefusedRequestError([Violation(("body",), error.detail, "multipart_invalid")]) from None

    async def _take(self, method: UploadMethod, form: FormData, caller: GatewayCaller) -> Any:
        file = form.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            raise _missing()
        size = file.size or 0
        if size > self._max_bytes:
            raise too_large(f"The file has {size} bytes; at most {self._max_bytes} are taken")
        if not size:
            raise RefusedRequestError([Violation(("body", "file"), "must not be empty", "file_empty")])
        message = GetMessageClass(method.descriptor.input_type)()
        offered = message.file  # type: ignore[attr-defined]  # both methods' requests have it
        offered.filename = file.filename.encode("utf-8", "replace").decode()
        offered.size = size
        offered.use_safe_filename = _flag(form.get("use_safe_filename"))
        entity_type = form.get("entity_type")
        if isinstance(entity_type, str):
            offered.entity_type = entity_type
        path = f"{STAGING_FOLDER}/{uuid.uuid4()}"
        offered.staged_path = path
        digest = hashlib.sha256()
        await self._objects.put_stream(caller.tenant, path, _chunks(file, digest), size, part_bytes=_PART_BYTES)
        offered.sha256 = digest.hexdigest()
        try:
            response = await method.call(message, timeout=self._timeout, metadata=_metadata(caller))
        except MeshError as error:
            await self._discard(caller.tenant, path, error)
            raise _placed(error) from None
        return response.upload

    async def _discard(self, tenant: str, path: str, error: MeshError) -> None:
        if error.kind in {ErrorKind.DEADLINE, ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL}:
            return  # the library may still read it; what it leaves the sweeper deletes
        try:
            await self._objects.delete(tenant, path)
        except MeshError as failure:
            _log.warning("upload_left_to_sweeper", path=path, cause=failure.reason)


async def _chunks(file: UploadFile, digest: Any) -> AsyncIterator[bytes]:
    await file.seek(0)
    while chunk := await file.read(_CHUNK_BYTES):
        digest.update(chunk)
        yield chunk


def _flag(value: object) -> bool:
    if value is None or value == "":
        return True
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    message = "Input should be a valid boolean"
    raise RefusedRequestError([Violation(("body", "use_safe_filename"), message, "bool_parsing")])


def _placed(error: MeshError) -> Exception:
    """Return a refusal with the form's members as places."""
    if error.kind is not ErrorKind.INVALID:
        return error
    found = []
    for one in error.violations:
        member = one.path.rpartition(".")[2]
        found.append(Violation(("body", member if member in _MEMBERS else "file"), one.message, one.type))
    return RefusedRequestError(found)


def _missing() -> RefusedRequestError:
    return RefusedRequestError([Violation(("body", "file"), "Field required", "missing")])


def _metadata(caller: GatewayCaller) -> Sequence[tuple[str, str]]:
    trace = tracing.current()
    if trace is None:
        return call_metadata(token=caller.token)
    named = trace.request_id if trace.request_id != trace.trace_id else None
    return call_metadata(token=caller.token, request_id=named, traceparent=trace.traceparent)
