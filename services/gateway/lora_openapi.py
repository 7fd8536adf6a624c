"""What the OpenAPI document says of the uploads of LoRA files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshkit.transcoding.openapi import SECURITY, errors
from meshkit.transcoding.schemas import Schema, reference
from services.gateway.lora_uploads import UPLOADS

_PUBLIC, _ADMIN = UPLOADS
_TYPES = "`clothes`, `identities`, `product`, `styles`"
_FORM = "Body_upload_lora"
_ADMIN_FORM = "Body_admin_upload_lora"
_ANSWER, _ADMIN_ANSWER = "LoRAUploadResponse", "AdminLoRAUploadResponse"


def _text(title: str, description: str, **more: object) -> Schema:
    return {"type": "string", "title": title, "description": description, **more}


def _form(name: str, types: str) -> Schema:
    return {
        "properties": {
            "file": _text(
                "File", "The LoRA: `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin`, 500 MiB at most.", format="binary"
            ),
            "entity_type": {
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "title": "Entity Type",
                "description": f"What it shows: {types}; without it, it goes to `no_type_provided`.",
            },
            "use_safe_filename": {
                "type": "boolean",
                "title": "Use Safe Filename",
                "description": "Whether the name is made safe, and gets a version where it is taken; else "
                "a taken name is a 409.",
                "default": True,
            },
        },
        "type": "object",
        "required": ["file"],
        "title": name,
        "description": "A LoRA to take into the library.",
    }


def _answer(name: str, *, admin: bool) -> Schema:
    members: dict[str, Any] = {
        "file_path": _text("File Path", "Full path where the file was stored."),
        "partial_path": _text("Partial Path", "Path by which tasks name it, such as `identities/ada.safetensors`."),
        "filename": _text("Filename", "Original name of the uploaded file."),
        "file_size": {"type": "integer", "title": "File Size", "description": "Bytes, as stored.", "minimum": 0},
        "upload_timestamp": _text("Upload Timestamp", "When it was uploaded, in RFC 3339."),
    }
    if admin:
        members["entity_type"] = _text("Entity Type", "Folder that it went to.")
    return {
        "properties": members,
        "type": "object",
        "required": list(members),
        "title": name,
        "description": "What came of an upload.",
    }


def _upload(name: str, *, summary: str, form: str, answer: str, scope: str, more: str) -> Schema:
    return {
        "tags": ["lora"],
        "summary": summary,
        "description": "Takes a LoRA file into the library. Its content is judged: its header, its layers against "
        "those of the base models, its values. What is refused is told with the reason. Files of torch are made "
        f"safetensors, and nothing in them is executed. {more}\n\nNeeds the scope `{scope}`.",
        "operationId": name,
        "security": SECURITY,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": reference(form)}}},
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": {"application/json": {"schema": reference(answer)}},
            },
            **errors(401, 403, 409, 413, 422, 503),
        },
    }


SCHEMAS: Mapping[str, Schema] = {
    _FORM: _form(_FORM, _TYPES),
    _ADMIN_FORM: _form(_ADMIN_FORM, f"{_TYPES}, `faces`"),
    _ANSWER: _answer(_ANSWER, admin=False),
    _ADMIN_ANSWER: _answer(_ADMIN_ANSWER, admin=True),
}
PATHS: Mapping[str, Mapping[str, Schema]] = {
    _PUBLIC: {
        "post": _upload(
            "upload_lora",
            summary="Upload a LoRA model file",
            form=_FORM,
            answer=_ANSWER,
            scope="write",
            more="It belongs to the caller's tenant.",
        )
    },
    _ADMIN: {
        "post": _upload(
            "admin_upload_lora",
            summary="Upload a LoRA model file (Admin)",
            form=_ADMIN_FORM,
            answer=_ADMIN_ANSWER,
            scope="admin",
            more="All tenants may use it.",
        )
    },
}
