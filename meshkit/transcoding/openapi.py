"""The OpenAPI 3.1 document of routes, in the shapes of the document that the original framework printed."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.scopes import scope_name
from meshkit.transcoding.options import field_json, field_rules, json_name, nested
from meshkit.transcoding.routes import Route
from meshkit.transcoding.schemas import Comments, Components, Schema, reference, title_of

SECURITY: list[dict[str, list[str]]] = [{"HTTPBearer": []}]

_VARIABLE = re.compile(r"\{([^}=]+)(?:=[^}]*)?\}")
_SNAKE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PATTERN_WORDS = {
    400: "The request does not hold",
    401: "The token is missing or does not hold",
    403: "The token lacks a scope or belongs to another tenant",
    404: "There is no such resource",
    409: "The resource's state, or another request under the same key, does not allow it",
    408: "The request did not arrive in time",
    412: "The resource is not as the request's conditions expect it",
    413: "The request is too large",
    422: "Validation Error",
    429: "Too much was asked for at once",
    503: "A part of the mesh does not answer right now",
}
_PREFER: Schema = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`handling=strict` refuses members and parameters that are not known, instead of ignoring them "
    "and naming them in the answer's `Warning`.",
    "schema": {"type": "string", "title": "Prefer"},
}
_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A repeated request with the same key gets the first one's answer, for 48 hours.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[!-~]+$",
        "title": "Idempotency-Key",
    },
}
_LAST_EVENT: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Goes on after this event.",
    "schema": {"type": "string", "title": "Last-Event-ID"},
}

ERROR_SCHEMAS: Mapping[str, Schema] = {
    "ErrorResponse": {
        "properties": {"detail": {"type": "string", "title": "Detail", "description": "What went wrong."}},
        "type": "object",
        "required": ["detail"],
        "title": "ErrorResponse",
        "description": "Why a request was not done.",
    },
    "HTTPValidationError": {
        "properties": {
            "detail": {"items": reference("ValidationError"), "type": "array", "title": "Detail"},
        },
        "type": "object",
        "title": "HTTPValidationError",
        "description": "Everything wrong with a request.",
    },
    "ValidationError": {
        "properties": {
            "loc": {
                "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "type": "array",
                "title": "Location",
            },
            "msg": {"type": "string", "title": "Message"},
            "type": {"type": "string", "title": "Error Type"},
        },
        "type": "object",
        "required": ["loc", "msg", "type"],
        "title": "ValidationError",
        "description": "One thing wrong with a request, and where.",
    },
}


def errors(*codes: int) -> dict[str, Schema]:
    """Return the error answers of an operation."""
    return {
        str(code): {
            "description": _PATTERN_WORDS[code],
            "content": {
                "application/json": {"schema": reference("HTTPValidationError" if code == 422 else "ErrorResponse")}
            },
        }
        for code in sorted(codes)
    }


def build_document(
    routes: Sequence[Route],
    image: FileDescriptorSet,
    *,
    version: str,
    extra_paths: Mapping[str, Mapping[str, Schema]] | None = None,
    extra_schemas: Mapping[str, Schema] | None = None,
) -> dict[str, Any]:
    """Return the document.

    Args:
        routes: Routes of the contracts.
        image: The contracts with their comments.
        version: Version of the mesh.
        extra_paths: Operations by path and method that no contract describes.
        extra_schemas: Components that these refer to.

    Raises:
        ContractError: two different schemas share a name.
    """
    components = Components(Comments(image))
    for name, schema in {**ERROR_SCHEMAS, **(extra_schemas or {})}.items():
        components.add(name, schema)
    paths: dict[str, dict[str, Schema]] = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route, components)
    for path, operations in (extra_paths or {}).items():
        paths.setdefault(path, {}).update(operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Atelier",
            "version": version,
            "description": "A self-hosted compute mesh for generative imagery.",
        },
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "securitySchemes": {
                "HTTPBearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "JWT Bearer token",
                }
            },
        },
    }


def _path(route: Route) -> str:
    names = {one.name: json_name(one) for one in route.path_fields}
    return _VARIABLE.sub(lambda match: f"{{{names[match[1]]}}}", route.template.text)


def _operation(route: Route, components: Components) -> Schema:
    rpc = route.rpc
    title = route.rule.summary or _SNAKE.sub(" ", rpc.name)
    scope = scope_name(route.rule.scope)
    needs = f"Needs the scope `{scope}`." if scope else "Any caller with a token may."
    operation: Schema = {
        "tags": [route.rule.tag or route.rpc.containing_service.name],
        "summary": title,
        "description": f"{components.comment(rpc.full_name)}\n\n{needs}".strip(),
        "operationId": _SNAKE.sub("_", rpc.name).lower(),
        "security": SECURITY,
    }
    parameters = _parameters(route, components)
    if parameters:
        operation["parameters"] = parameters
    if route.has_body:
        operation["requestBody"] = _body(route, components)
    answer = _answer(route, components, title)
    operation["responses"] = {"200": answer, **_errors(route)}
    if other := route.rule.other_status:
        operation["responses"][str(other)] = {**answer, "description": "The same body, of a bad state"}
    return operation


def _parameters(route: Route, components: Components) -> list[Schema]:
    found = [_parameter(one, "path", components) for one in route.path_fields]
    found += [_parameter(one, "query", components) for one in route.query_fields()]
    if route.rule.idempotent:
        found.append(_KEY)
    if route.has_body or route.query_fields():
        found.append(_PREFER)
    if route.streaming:
        found.append(_LAST_EVENT)
    return found


def _parameter(one: FieldDescriptor, place: str, components: Components) -> Schema:
    return {
        "name": json_name(one),
        "in": place,
        "required": place == "path" or field_rules(one).required,
        "description": components.comment(one.full_name),
        "schema": components.parameter(one),
    }


def _body(route: Route, components: Components) -> Schema:
    one = route.body
    if one is None:
        schema = components.union(route.request)
        return {"required": route.method != "DELETE", "content": {"application/json": {"schema": schema}}}
    if field_json(one).shown_as:
        schema = {key: value for key, value in components.member(one).items() if key != "description"}
    else:
        schema = components.union(nested(one))
    if "$ref" not in schema:
        schema = {**schema, "title": title_of(f"{one.name}_data")}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _answer(route: Route, components: Components, title: str) -> Schema:
    one = route.response_body
    kind = "text/event-stream" if route.streaming else "application/json"
    if route.serves_file:
        kind = mimetypes.guess_type(route.template.text)[0] or "application/octet-stream"
        file: Schema = {"type": "string", "format": "binary", "title": f"Response {title}"}
        return {"description": "Successful Response", "content": {kind: {"schema": file}}}
    if one is None:
        schema = components.union(route.response)
    elif one.message_type is None:
        schema = components.member(one)
    else:
        variant = route.rule.variant
        schema = components.variant(one.message_type, variant) if variant else components.union(one.message_type)
        if one.is_repeated:
            schema = {"items": schema, "type": "array", "title": f"Response {title}"}
        elif "$ref" not in schema:
            schema = {**schema, "title": f"Response {title}"}
    if route.streaming:
        schema = _event_of(schema)
    return {"description": "Successful Response", "content": {kind: {"schema": schema}}}


def _event_of(schema: Schema) -> Schema:
    """Return what one server-sent event holds: its data are a message as JSON text."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    texts = {name: {"type": "string"} for name in ("event", "id")}
    return {"type": "object", "required": ["data"], "properties": {**texts, "data": data}, "title": "Event"}


def _errors(route: Route) -> dict[str, Schema]:
    codes = {401, 403, 429, 503, *route.rule.errors}
    if route.path_fields:
        codes |= {404, 422}
    if route.query_fields() or route.has_body:
        codes.add(422)
    if route.method != "GET":
        codes.add(409)
    if route.has_body:
        codes |= {408, 413}
    return errors(*codes)
