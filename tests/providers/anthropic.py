"""Anthropic's messages as published, at once and streamed.

https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.providers.base import Asked, ProviderServer, Reply

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
# Models that still take it; those from 4.7 on do not.
_TEMPERED = r"claude-[23]|claude-\w+-4-([0156]|2025)"


class AnthropicServer(ProviderServer):
    """A server of messages.

    Attributes:
        key: The API key.
        stop: Stop reason of the next answers.
        text: What is answered.
        overloaded: Whether a streamed answer breaks off with an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = "anthropic-key"  # pragma: allowlist secret
        self.stop = "end_turn"
        self.text = "A red dress."
        self.overloaded = False

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Contents of the requests, in order."""
        return [asked.json for asked in self.asked]

    async def answer(self, asked: Asked) -> Reply:
        if (asked.method, asked.path) != ("POST", "/v1/messages"):
            return error(404, "Not Found")
        # Clients since release 2 send the key as a token; both are taken.
        if self.key not in (asked.headers.get("x-api-key"), asked.headers.get("authorization", "")[len("Bearer ") :]):
            return error(401, "invalid x-api-key")
        if "anthropic-version" not in asked.headers:
            return error(400, "anthropic-version: header is required")
        body = asked.json
        if (complaint := _complaint(body)) is not None:
            return error(400, complaint)
        if "unknown" in body["model"]:
            return error(404, f"model: {body['model']}")
        if body.get("stream"):
            return Reply(200, self._stream(body), {"content-type": "text/event-stream", "request-id": "req_1"})
        content = [{"type": "text", "text": self.text}] if self.text else []
        return Reply.of(_message(body) | {"content": content, "stop_reason": self.stop}, request_id="req_1")

    def _stream(self, body: Mapping[str, Any]) -> bytes:
        started = _message(body) | {"usage": {"input_tokens": 12, "output_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": started}, {"type": "ping"}]
        if self.text:
            block = {"type": "text", "text": ""}
            events.append({"type": "content_block_start", "index": 0, "content_block": block})
            for word in self.text.split(" "):
                delta = {"type": "text_delta", "text": f"{word} "}
                events.append({"type": "content_block_delta", "index": 0, "delta": delta})
            if self.overloaded:
                events.append({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
                return _encoded(events)
            events.append({"type": "content_block_stop", "index": 0})
        ended = {"stop_reason": self.stop, "stop_sequence": None}
        events.append({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 5}})
        return _encoded([*events, {"type": "message_stop"}])


def error(status: int, message: str) -> Reply:
    """Return an error as Anthropic writes it."""
    whole = {"type": "error", "error": {"type": _TYPES[status], "message": message}, "request_id": "req_1"}
    return Reply.of(whole, status, request_id="req_1")


def out_of_credits() -> Reply:
    """Return the 400 of an account without credits."""
    return error(400, "Your credit balance is too low to access the Anthropic API.")


def _complaint(body: Any) -> str | None:
    """Return what the API would say of a request that does not hold."""
    if missing := [name for name in ("model", "max_tokens", "messages") if not body.get(name)]:
        return f"{missing[0]}: Field required"
    if any(message["role"] not in {"user", "assistant"} for message in body["messages"]):
        return 'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter.'
    if "temperature" in body and not re.match(_TEMPERED, body["model"]):
        return "`temperature` is deprecated for this model."
    if not 0 <= body.get("temperature", 1) <= 1:
        return "temperature: range: 0..1"
    if unknown := set(body) - {"model", "max_tokens", "messages", "system", "temperature", "stream"}:
        return f"{min(unknown)}: Extra inputs are not permitted"
    return None


def _message(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": body["model"],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 5},
    }


def _encoded(events: list[dict[str, Any]]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
