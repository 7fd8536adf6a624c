"""Ollama's chat as published: one answer, or lines of JSON.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from tests.providers.base import Asked, ProviderServer, Reply


class OllamaServer(ProviderServer):
    """A server of chats.

    Attributes:
        models: Models that it has.
        done: Why the next answers end.
        text: What is answered.
        pause: Seconds after each word.
    """

    def __init__(self) -> None:
        super().__init__()
        self.models = ("llama3.2", "llava")
        self.done = "stop"
        self.text = "A red dress."
        self.pause = 0.0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Contents of the requests, in order."""
        return [asked.json for asked in self.asked]

    async def answer(self, asked: Asked) -> Reply:
        if (asked.method, asked.path) != ("POST", "/api/chat"):
            return Reply(404, b"404 page not found", {"content-type": "text/plain"})
        body = asked.json
        if body.get("model") not in self.models:
            return error(404, f"model '{body.get('model')}' not found")
        for message in body["messages"]:
            for image in message.get("images") or []:
                base64.b64decode(image, validate=True)
        if body.get("stream", True):
            lines = [json.dumps(line).encode() + b"\n" for line in self._stream(body)]
            pieces = tuple(lines) if self.pause else ()
            return Reply(200, b"".join(lines), {"content-type": "application/x-ndjson"}, pieces, self.pause)
        return Reply.of(self._last(body, self.text))

    def _stream(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        words = self.text.split(" ") if self.text else []
        return [*(_frame(body, f"{word} ") | {"done": False} for word in words), self._last(body, "")]

    def _last(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        took = {"total_duration": 5_000_000, "load_duration": 1_000_000, "eval_duration": 3_000_000}
        counts = {"prompt_eval_count": 12, "eval_count": 5}
        return _frame(body, text) | {"done": True, "done_reason": self.done} | took | counts


def error(status: int, message: str) -> Reply:
    """Return an error as Ollama writes it."""
    return Reply.of({"error": message}, status)


def _frame(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"model": body["model"], "created_at": "2026-01-01T00:00:00.000000Z", "message": message}
