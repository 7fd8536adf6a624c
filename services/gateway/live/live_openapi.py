"""What the OpenAPI document says of the pages about live events, and of the events as a stream."""

from __future__ import annotations

from collections.abc import Mapping

from meshkit.transcoding.openapi import SECURITY, errors
from meshkit.transcoding.schemas import Schema, reference
from services.gateway.live.sse import ROUTE
from services.gateway.live.system import EVENTS_ROUTE, HEALTH_ROUTE


def _object(name: str, description: str, properties: Mapping[str, Schema]) -> Schema:
    return {
        "properties": dict(properties),
        "type": "object",
        "required": list(properties),
        "title": name,
        "description": description,
    }


def _text(title: str, description: str, *, null: bool = False, **more: object) -> Schema:
    said = {"title": title, "description": description}
    if null:
        return {"anyOf": [{"type": "string", **more}, {"type": "null"}], **said}
    return {"type": "string", **more, **said}


def _whole(title: str, description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "title": title, "description": description}


def _list(of: Schema, title: str, description: str) -> Schema:
    return {"items": of, "type": "array", "title": title, "description": description}


_ANY: Schema = {"additionalProperties": True, "type": "object"}
_MOMENT = _text("Timestamp", "When this was said.", format="date-time")
_MAYBE: Schema = {"anyOf": [reference("BroadcasterStatus"), {"type": "null"}]}

SCHEMAS: Mapping[str, Schema] = {
    "EventTypeInfo": _object(
        "EventTypeInfo",
        "A type of message to those who listen.",
        {
            "type": _text("Type", "The type, `{domain}.{action}`."),
            "channel": _text("Channel", "Its channel; null for what belongs to the connection itself.", null=True),
            "description": _text("Description", "When it is sent."),
            "deprecated": {"type": "boolean", "title": "Deprecated", "description": "Not to be relied on any more."},
            "payload_schema": {**_ANY, "title": "Payload Schema", "description": "JSON Schema of its `data`."},
            "example": {"anyOf": [_ANY, {"type": "null"}], "title": "Example", "description": "Such `data`."},
            "replacement": _text("Replacement", "What takes the place of a deprecated one.", null=True),
        },
    ),
    "EventRegistryResponse": _object(
        "EventRegistryResponse",
        "The types of messages to those who listen.",
        {
            "event_types": _list(reference("EventTypeInfo"), "Event Types", "The types, by name."),
            "channels": _list({"type": "string"}, "Channels", "The channels."),
            "total_count": _whole("Total Count", "How many types there are."),
            "deprecated_count": _whole("Deprecated Count", "How many of them are deprecated."),
        },
    ),
    "BroadcasterStatus": _object(
        "BroadcasterStatus",
        "Whether those who listen are told.",
        {
            "state": _text("State", "As of a breaker: closed while it works.", enum=["closed", "open", "half_open"]),
            "failure_count": _whole("Failure Count", "Failures in a row."),
            "is_degraded": {"type": "boolean", "title": "Is Degraded", "description": "Whether they are not told."},
            "message": _text("Message", "What is wrong.", null=True),
        },
    ),
    "WebSocketHealthResponse": _object(
        "WebSocketHealthResponse",
        "Whether those who listen are told.",
        {
            "event_broadcaster": {
                **_MAYBE,
                "title": "Event Broadcaster",
                "description": "What happens to jobs.",
            },
            "system_broadcaster": {
                **_MAYBE,
                "title": "System Broadcaster",
                "description": "How the mesh is.",
            },
            "timestamp": _MOMENT,
        },
    ),
}


def _page(name: str, summary: str, description: str, schema: str) -> Schema:
    return {
        "tags": ["system"],
        "summary": summary,
        "description": f"{description}\n\nNeeds the scope `read`.",
        "operationId": name,
        "security": SECURITY,
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": {"application/json": {"schema": reference(schema)}},
            },
            **errors(401, 403),
        },
    }


PATHS: Mapping[str, Mapping[str, Schema]] = {
    EVENTS_ROUTE: {
        "get": _page(
            "list_websocket_events",
            "List WebSocket Events",
            "Lists the types of messages that `/ws/events` and `/api/v1/events` send, with schemas and examples.",
            "EventRegistryResponse",
        )
    },
    HEALTH_ROUTE: {
        "get": _page(
            "get_websocket_health",
            "Get WebSocket Health",
            "Tells whether this gateway gets what it tells those who listen.",
            "WebSocketHealthResponse",
        )
    },
    ROUTE: {
        "get": {
            "tags": ["system"],
            "summary": "Stream Events",
            "description": "Streams what happens to the jobs of the caller's tenant, as `/ws/events` does, to an "
            "operator also how the mesh is. The `data` of each event is the message.\n\nNeeds the scope `read`.",
            "operationId": "stream_events",
            "security": SECURITY,
            "parameters": [
                {
                    "name": "events",
                    "in": "query",
                    "required": False,
                    "description": "Types or patterns (`job.*`), separated by commas; all by default.",
                    "schema": {"type": "string", "title": "Events"},
                },
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "description": "Number of the last message that came: the stream goes on after it.",
                    "schema": {"type": "string", "title": "Last-Event-Id"},
                },
            ],
            "responses": {
                "200": {
                    "description": "The stream",
                    "content": {"text/event-stream": {"schema": {"type": "string"}}},
                },
                **errors(401, 403, 422, 429),
            },
        }
    },
}
