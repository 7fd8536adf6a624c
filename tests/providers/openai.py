"""OpenAI's chat completions as published, at once and streamed.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.providers.base import Asked, ProviderServer, Reply

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    429: "requests",
    500: "server_error",
}
# Models that reason take no `max_tokens`, and no temperature but 1.
_REASON = ("o1", "o3", "o4", "gpt-5")


class OpenAiServer(ProviderServer):
    """A server of chat completions.

    Attributes:
        key: The API key.
        finish: Finish reason of the next answers.
        text: What is answered.
        refusal: What the model says in place of an answer, if it refuses.
        cost: What an answer is said to cost, as resellers do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = "openai-key"  # pragma: allowlist secret
        self.finish = "stop"
        self.text = "A red dress."
        self.refusal = ""
        self.cost: float | None = None

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Contents of the requests, in order."""
        return [asked.json for asked in self.asked]

    async def answer(self, asked: Asked) -> Reply:
        if (asked.method, asked.path) != ("POST", "/v1/chat/completions"):
            return error(404, f"Invalid URL ({asked.method} {asked.path})")
        if asked.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "Incorrect API key provided.", "invalid_api_key")
        body = asked.json
        if (complaint := _complaint(body)) is not None:
            message, code, param = complaint
            return error(400, message, code, param)
        if "unknown" in body["model"]:
            return error(404, f"The model `{body['model']}` does not exist.", "model_not_found")
        if body.get("stream"):
            return Reply(200, self._stream(body), {"content-type": "text/event-stream", "x-request-id": "req_1"})
        said: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.refusal else self.text,
            "refusal": self.refusal or None,
        }
        choice = {"index": 0, "message": said, "finish_reason": self.finish, "logprobs": None}
        return Reply.of(
            _frame(body, "chat.completion") | {"choices": [choice], "usage": self._usage()}, x_request_id="req_1"
        )

    def _usage(self) -> dict[str, Any]:
        counts = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
        return counts if self.cost is None else {**counts, "cost": self.cost}

    def _stream(self, body: Mapping[str, Any]) -> bytes:
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
        if self.refusal:
            deltas.append(({"refusal": self.refusal}, None))
        elif self.text:
            deltas.extend(({"content": f"{word} "}, None) for word in self.text.split(" "))
        deltas.append(({}, self.finish))
        frame = _frame(body, "chat.completion.chunk")
        chunks = [
            frame
            | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}], "usage": None}
            for delta, finish in deltas
        ]
        if body.get("stream_options", {}).get("include_usage"):
            chunks.append(frame | {"choices": [], "usage": self._usage()})
        return "".join([*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]).encode()


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> Reply:
    """Return an error as OpenAI writes it."""
    whole = {"message": message, "type": _TYPES[status], "param": param, "code": code}
    return Reply.of({"error": whole}, status, x_request_id="req_1")


def out_of_credits() -> Reply:
    """Return the 429 of an account without credits, which no waiting mends."""
    return error(429, "You exceeded your current quota, please check your plan.", "insufficient_quota")


def _complaint(body: Any) -> tuple[str, str | None, str | None] | None:
    """Return message, code and parameter of what does not hold."""
    if missing := [name for name in ("model", "messages") if not body.get(name)]:
        return f"Missing required parameter: '{missing[0]}'.", "missing_required_parameter", missing[0]
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if not all(url.startswith(("data:image/", "https://")) for url in urls):
        return "Invalid value for 'image_url'.", "invalid_image_url", "messages"
    known = {"model", "messages", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens"}
    if unknown := set(body) - known:
        return f"Unrecognized request argument supplied: {min(unknown)}", None, None
    if "stream_options" in body and not body.get("stream"):
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled.", None, "stream_options"
    return _complaint_of_reasoning(body) if body["model"].startswith(_REASON) else None


def _complaint_of_reasoning(body: Any) -> tuple[str, str | None, str | None] | None:
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return message, "unsupported_parameter", "max_tokens"
    if body.get("temperature", 1) != 1:
        message = "Unsupported value: 'temperature'. Only the default (1) value is supported."
        return message, "unsupported_value", "temperature"
    return None


def _frame(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_764_000_000, "model": body["model"]}
