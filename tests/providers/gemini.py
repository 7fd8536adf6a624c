"""Gemini as published: `generateContent` and `streamGenerateContent`, by the Developer API's paths and by Vertex's.

https://ai.google.dev/api/generate-content, https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.providers.base import Asked, ProviderServer, Reply

# Sizes at 1K, of gemini-3-pro-image; 2K and 4K are twice and four times as large.
SIZES = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
_SCALES = {"1K": 1, "2K": 2, "4K": 4}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_RPC = "type.googleapis.com/google.rpc."
_PATH = re.compile(
    r"/(?P<version>v1|v1beta|v1beta1)/(?P<project>projects/[^/]+/locations/[^/]+/)?(publishers/google/)?models/"
    r"(?P<model>[^/:]+):(?P<method>\w+)"
)


class GeminiServer(ProviderServer):
    """A server of both APIs.

    Attributes:
        key: The API key of the Gemini API.
        token: The access token of Vertex, as `/token` gives it out.
        finish: Finish reason of the next answers; other than STOP they hold no picture.
        block: Reason why prompts are blocked, if they are.
        text: What is answered in text.
        text_only: Whether pictures are answered in text.
        shifts: Pixels by which the next pictures lie to the right of what was sent.
        strange: How many of the next pictures show something else than what was sent.
        picture: Bytes that are sent in place of a picture.
        continuation: Token by which an answer that is called unfinished may be asked to go on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = "gemini-key"  # pragma: allowlist secret
        self.token = "vertex-token"  # pragma: allowlist secret
        self.finish = "STOP"
        self.block = ""
        self.text = "A red dress."
        self.text_only = False
        self.shifts = 0
        self.strange = 0
        self.picture: bytes | None = None
        self.continuation = ""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Contents of the requests for content, in order."""
        return [asked.json for asked in self.asked if _PATH.fullmatch(asked.path)]

    def charges(self, asked: Asked) -> bool:
        return _PATH.fullmatch(asked.path) is not None

    async def answer(self, asked: Asked) -> Reply:
        if asked.path == "/token":
            return self._token(asked)
        found = _PATH.fullmatch(asked.path)
        if found is None or found["method"] not in {"generateContent", "streamGenerateContent"}:
            return error(404, "The requested URL was not found on this server.")
        if (refusal := self._unauthorised(asked, vertex=found["project"] is not None)) is not None:
            return refusal
        if (complaint := _complaint(asked.json, vertex=found["version"] == "v1beta1")) is not None:
            return error(400, complaint)
        if "unknown" in found["model"]:
            return error(404, f"models/{found['model']} is not found for API version v1beta, or is not supported.")
        answer = self.content(found["model"], asked.json)
        if found["method"] == "generateContent":
            return Reply.of(answer)
        return Reply(200, _stream(answer), {"content-type": "text/event-stream"})

    def _token(self, asked: Asked) -> Reply:
        """Give an access token for a signed assertion (RFC 7523)."""
        if b"assertion=" not in asked.body or b"grant-type%3Ajwt-bearer" not in asked.body:
            return Reply.of({"error": "invalid_grant", "error_description": "Invalid JWT"}, 400)
        return Reply.of({"access_token": self.token, "expires_in": 3599, "token_type": "Bearer"})

    def content(self, model: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a GenerateContentResponse."""
        usage = {"promptTokenCount": 12, "candidatesTokenCount": 5, "totalTokenCount": 17}
        whole: dict[str, Any] = {"usageMetadata": usage, "modelVersion": model, "responseId": "response-1"}
        if self.block:
            whole["promptFeedback"] = {"blockReason": self.block}
            return whole
        candidate: dict[str, Any] = {"finishReason": self.finish, "index": 0}
        whole["candidates"] = [candidate]
        if self.continuation:
            candidate |= {"finishReason": "CONTINUATION", "continuationToken": self.continuation}
        elif self.finish not in {"STOP", "MAX_TOKENS"}:
            candidate["finishMessage"] = "Unable to show the generated image."
            return whole
        config = body.get("generationConfig", {})
        if "IMAGE" not in config.get("responseModalities", []) or self.text_only:
            parts: list[dict[str, Any]] = [{"text": self.text}] if self.text else []
        else:
            parts = self._pictures(config.get("imageConfig", {}), body)
        candidate["content"] = {"parts": parts, "role": "model"}
        return whole

    def _pictures(self, config: Mapping[str, str], body: Mapping[str, Any]) -> list[dict[str, Any]]:
        width, height = SIZES[config.get("aspectRatio", "1:1")]
        scale = _SCALES[config.get("imageSize", "1K")]
        size = (width * scale, height * scale)
        sent = [data for part in _parts(body) if (data := shown(part)) is not None]
        strange, self.strange = self.strange > 0, max(0, self.strange - 1)
        data = _drawn(size, sent, self.shifts, strange=strange) if self.picture is None else self.picture
        drawn = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(data).decode()}}
        black = base64.b64encode(png(Image.new("RGB", (64, 64)))).decode()
        thought = {"inlineData": {"mimeType": "image/png", "data": black}, "thought": True}
        # Gemini 3 flags parts as thoughts; the last picture counts, and the API flags that one too at times.
        return [{"text": "Composing.", "thought": True}, thought, {"text": "Here it is."}, drawn | {"thought": True}]

    def _unauthorised(self, asked: Asked, *, vertex: bool) -> Reply | None:
        if vertex:
            if asked.headers.get("authorization") != f"Bearer {self.token}":
                return error(401, "Request had invalid authentication credentials.")
        elif asked.headers.get("x-goog-api-key") != self.key:
            # The Gemini API says so by a 400, with the reason among the details.
            reason = {"@type": f"{_RPC}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            return error(400, "API key not valid. Please pass a valid API key.", [reason])
        return None


def error(status: int, message: str, details: list[dict[str, Any]] | None = None) -> Reply:
    """Return an error as Google's APIs write it."""
    whole: dict[str, Any] = {"code": status, "message": message, "status": _STATUSES[status]}
    if details:
        whole["details"] = details
    return Reply.of({"error": whole}, status)


def exhausted(seconds: float) -> Reply:
    """Return a 429 that says in its body when to come again."""
    quota = {"@type": f"{_RPC}QuotaFailure", "violations": [{"quotaMetric": "generate_content_requests"}]}
    retry = {"@type": f"{_RPC}RetryInfo", "retryDelay": f"{seconds:g}s"}
    return error(429, "You exceeded your current quota.", [quota, retry])


def png(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    held = io.BytesIO()
    image.save(held, "PNG", compress_level=1)
    return held.getvalue()


def _drawn(size: tuple[int, int], sent: list[bytes], shift: int, *, strange: bool) -> bytes:
    if not sent or strange:
        colour = tuple(hashlib.sha256(repr(size).encode()).digest()[:3])
        return png(Image.new("RGB", size, colour))
    with Image.open(io.BytesIO(sent[0])) as first:
        image = first.convert("RGB").resize(size)
    if shift:
        moved = image.copy()
        moved.paste(image, (shift, 0))
        image = moved
    return png(image)


def shown(part: Mapping[str, Any]) -> bytes | None:
    """Return the picture of a part; None where it is none, and nothing where it is of an unknown kind.

    Members have either spelling, and bytes either alphabet, as in all of Google's JSON.
    """
    inline = part.get("inlineData")
    if inline is None:
        return None
    kind = inline.get("mimeType") or inline.get("mime_type") or ""
    return base64.b64decode(inline["data"], altchars=b"-_") if kind.startswith("image/") else b""


def _parts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [part for content in body["contents"] for part in content["parts"]]


def _complaint(body: Any, *, vertex: bool) -> str | None:
    """Return what the API would say of a request that does not hold."""
    if not isinstance(body, dict) or not body.get("contents"):
        return "* GenerateContentRequest.contents: contents is not specified"
    for content in body["contents"]:
        if vertex and content.get("role") not in {"user", "model"}:
            return "Please use a valid role: user, model."
        for part in content["parts"]:
            if shown(part) == b"":
                return "Unsupported MIME type: "
    config = body.get("generationConfig", {})
    known = {"temperature", "topP", "maxOutputTokens", "responseModalities", "imageConfig", "candidateCount"}
    if unknown := set(config) - known:
        return f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at 'generation_config'"
    if not 0 <= config.get("temperature", 1) <= 2 or not 0 <= config.get("topP", 1) <= 1:
        return "Unable to submit request because it has a sampling value outside of its range."
    image = config.get("imageConfig", {})
    if image.get("aspectRatio", "1:1") not in SIZES or image.get("imageSize", "1K") not in _SCALES:
        return "* GenerateContentRequest.generation_config.image_config: invalid value"
    return None


def _stream(answer: dict[str, Any]) -> bytes:
    """Return the text word by word, the finish reason and the usage last."""
    candidates = answer.get("candidates", [])
    parts = candidates[0].get("content", {}).get("parts", []) if candidates else []
    words = [f"{word} " for part in parts if part.get("text") for word in part["text"].split(" ")]
    events = []
    for word in words:
        content = {"parts": [{"text": word}], "role": "model"}
        events.append({"candidates": [{"content": content, "index": 0}], "modelVersion": answer["modelVersion"]})
    if candidates:
        answer = answer | {"candidates": [{**candidates[0], "content": {"parts": [], "role": "model"}}]}
    return "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in [*events, answer]).encode()
