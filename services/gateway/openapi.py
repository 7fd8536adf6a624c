"""What the OpenAPI document says of the gateway's own routes: stored images, media URLs and health."""

from __future__ import annotations

from collections.abc import Mapping

from meshkit.media_urls import MEDIA_ROUTE
from meshkit.transcoding.openapi import SECURITY, errors
from meshkit.transcoding.schemas import Schema, reference
from services.gateway.stored_images import IMAGES
from services.gateway.thumbnails import WIDTHS

_UPLOAD = "Body_save_image_api_v1_storage_images__path__post"


def _text(title: str, description: str, **more: object) -> Schema:
    return {"type": "string", "title": title, "description": description, **more}


SCHEMAS: Mapping[str, Schema] = {
    _UPLOAD: {
        "properties": {"file": _text("File", "The image.", format="binary")},
        "type": "object",
        "required": ["file"],
        "title": _UPLOAD,
        "description": "An image to store.",
    },
    "StoredImage": {
        "properties": {
            "path": _text("Path", "Path in storage."),
            "size": {"type": "integer", "title": "Size", "description": "Bytes.", "minimum": 0},
            "content_type": _text("Content Type", "Media type, judged by the content."),
            "last_modified": _text("Last Modified", "When it was written.", format="date-time"),
            "url": _text("Url", "Signed address that works without a token, for a while.", format="uri"),
        },
        "type": "object",
        "required": ["path", "size", "content_type", "last_modified", "url"],
        "title": "StoredImage",
        "description": "An image in storage.",
    },
    "StoredImageList": {
        "properties": {
            "images": {
                "items": reference("StoredImage"),
                "type": "array",
                "title": "Images",
                "description": "The images, in the order of their paths.",
            },
            "total": {
                "type": "integer",
                "title": "Total",
                "description": "Images that there are, as far as the first 10,000 objects of the prefix tell.",
                "minimum": 0,
            },
        },
        "type": "object",
        "required": ["images", "total"],
        "title": "StoredImageList",
        "description": "Images in storage.",
    },
    "DeletedImage": {
        "properties": {
            "deleted": {"type": "boolean", "const": True, "title": "Deleted", "description": "Always true."},
            "path": _text("Path", "Path that it had."),
        },
        "type": "object",
        "required": ["deleted", "path"],
        "title": "DeletedImage",
        "description": "An image that is gone.",
    },
    "HealthResponse": {
        "properties": {
            "status": _text(
                "Status", "healthy; degraded where something does not work; unhealthy where calls cannot be served."
            ),
            "version": _text("Version", "Version of the mesh."),
            "services": {
                "additionalProperties": {"type": "string"},
                "type": "object",
                "title": "Services",
                "description": "State of each service behind the gateway.",
            },
            "problems": {
                "items": {"type": "string"},
                "type": "array",
                "title": "Problems",
                "description": "What does not work: the service, and its part, e.g. `tasks: postgresql`.",
            },
            "timestamp": _text("Timestamp", "When this was said.", format="date-time"),
        },
        "type": "object",
        "required": ["status", "version", "services", "problems", "timestamp"],
        "title": "HealthResponse",
        "description": "State of the mesh.",
    },
}


def _json(schema: Schema, description: str = "Successful Response") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _storage(name: str, summary: str, description: str, *, scope: str, **more: object) -> Schema:
    return {
        "tags": ["storage"],
        "summary": summary,
        "description": f"{description}\n\nNeeds the scope `{scope}`.",
        "operationId": name,
        "security": SECURITY,
        **more,
    }


_PATH: Schema = {
    "name": "path",
    "in": "path",
    "required": True,
    "description": "Path in storage; may contain slashes.",
    "schema": {"type": "string", "title": "Path", "minLength": 1, "maxLength": 1024},
}


def _header(name: str, description: str) -> Schema:
    schema = {"type": "string", "title": name}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_WRITE_CONDITIONS = (
    _header("If-Match", "Only where the stored image has one of these ETags; `*`: only where there is one."),
    _header("If-None-Match", "Only where the stored image has none of these ETags; `*`: only where there is none."),
    _header("If-Unmodified-Since", "Only where the stored image is not younger; without `If-Match` alone."),
)
_READ_CONDITIONS = (
    _header("If-Match", "412 unless the image has one of these ETags; `*` stands for any."),
    _header("If-None-Match", "304 if the image has one of these ETags; `*` stands for any."),
    _header("If-Modified-Since", "304 if the image is not younger; without `If-None-Match` alone."),
    _header("If-Unmodified-Since", "412 if the image is younger; without `If-Match` alone."),
)
_RANGE = (
    _header("Range", "One range of bytes; several are answered with the whole."),
    _header("If-Range", "The range holds for this ETag alone; another version is answered with the whole."),
)
_WIDTH: Schema = {
    "name": "w",
    "in": "query",
    "required": False,
    "description": "A thumbnail of this width, as WebP, instead of the image; of images alone.",
    "schema": {"type": "integer", "enum": list(WIDTHS), "title": "W"},
}
_BYTES: Schema = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
_READ: Schema = {
    "200": {"description": "The image", **_BYTES},
    "206": {"description": "The range asked for", **_BYTES},
    "304": {"description": "The caller has this version"},
    "307": {"description": "The image is elsewhere: a CDN or a signed address"},
    "416": {"description": "The range lies outside of the image"},
}
_SEEN: Schema = {
    "200": {"description": "It exists; the headers are those of a read"},
    "304": {"description": "The caller has this version"},
    **{
        str(code): {"description": text}
        for code, text in {
            401: "No valid token",
            403: "Scope missing",
            404: "Not there",
            412: "Not as expected",
            422: "Bad path",
        }.items()
    },
}

PATHS: Mapping[str, Mapping[str, Schema]] = {
    IMAGES: {
        "get": _storage(
            "list_images",
            "List Images",
            "Lists stored images in the order of their paths.",
            scope="read",
            parameters=[
                {
                    "name": "limit",
                    "in": "query",
                    "required": False,
                    "description": "Images to return at most.",
                    "schema": {"type": "integer", "default": 100, "minimum": 1, "maximum": 1000, "title": "Limit"},
                },
                {
                    "name": "prefix",
                    "in": "query",
                    "required": False,
                    "description": "Only paths that begin so.",
                    "schema": {"type": "string", "maxLength": 1024, "title": "Prefix"},
                },
            ],
            responses={"200": _json(reference("StoredImageList")), **errors(401, 403, 422, 503)},
        )
    },
    f"{IMAGES}/{{path}}": {
        "get": _storage(
            "get_image",
            "Get Image",
            "Returns an image, or a range of it; redirects where a CDN or signed addresses are configured.",
            scope="read",
            parameters=[_PATH, _WIDTH, *_READ_CONDITIONS, *_RANGE],
            responses={**_READ, **errors(401, 403, 404, 412, 422, 503)},
        ),
        "post": _storage(
            "save_image",
            "Save Image",
            "Stores an image, as a form's `file` or as the request's content. The type is judged by the content. "
            "Conditions hold in the moment of the write: of two writers with `If-None-Match: *` one gets a 412.",
            scope="write",
            parameters=[_PATH, *_WRITE_CONDITIONS],
            requestBody={
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": reference(_UPLOAD)},
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            responses={"200": _json(reference("StoredImage")), **errors(401, 403, 412, 413, 422, 503)},
        ),
        "delete": _storage(
            "delete_image",
            "Delete Image",
            "Deletes an image.",
            scope="write",
            parameters=[_PATH, *_WRITE_CONDITIONS],
            responses={"200": _json(reference("DeletedImage")), **errors(401, 403, 404, 412, 422, 503)},
        ),
        "head": _storage(
            "check_image_exists",
            "Check Image Exists",
            "Answers with the headers of a read.",
            scope="read",
            parameters=[_PATH, _WIDTH, *_READ_CONDITIONS],
            responses=_SEEN,
        ),
    },
    f"{MEDIA_ROUTE}/{{token}}": {
        "get": {
            "tags": ["storage"],
            "summary": "Get Media",
            "description": "Returns what a signed address opens. Needs no token; the address expires.",
            "operationId": "get_media",
            "parameters": [
                {
                    "name": "token",
                    "in": "path",
                    "required": True,
                    "description": "The signed part of the address.",
                    "schema": {"type": "string", "title": "Token"},
                },
                _WIDTH,
            ],
            "responses": {**_READ, **errors(403, 404, 412, 422, 503)},
        }
    },
    "/health": {
        "get": {
            "tags": ["health"],
            "summary": "Health Check",
            "description": "Tells whether the mesh can work. Needs no token.",
            "operationId": "health_check",
            "responses": {
                "200": _json(reference("HealthResponse")),
                "503": _json(reference("HealthResponse"), "Calls cannot be served"),
            },
        }
    },
}
