"""FASHN's prediction API as published: `POST /v1/run`, `GET /v1/status/{id}`, and pictures behind addresses.

https://docs.fashn.ai/api-overview/api-fundamentals, https://docs.fashn.ai/api-overview/error-handling
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from tests.providers.base import Asked, ProviderServer, Reply

CREDITS_HEADER = "x-fashn-credits-used"

# Inputs of each model: those that it must have, and those that it may have.
_COMMON = frozenset({"seed", "output_format", "return_base64"})
_NEWER = _COMMON | {"aspect_ratio", "generation_mode", "num_images", "resolution"}
MODELS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "tryon-v1.6": (
        frozenset({"model_image", "garment_image"}),
        _COMMON | {"category", "garment_photo_type", "mode", "moderation_level", "num_samples", "segmentation_free"},
    ),
    "tryon-max": (frozenset({"model_image", "product_image"}), _NEWER | {"prompt"}),
    "product-to-model": (
        frozenset({"product_image"}),
        _NEWER - {"num_images"} | {"model_image", "prompt", "image_prompt"},
    ),
    "model-swap": (frozenset({"model_image"}), _NEWER | {"prompt", "face_reference", "face_reference_mode"}),
    "background-change": (frozenset({"image", "prompt"}), _NEWER - {"aspect_ratio"}),
    "edit": (frozenset({"image", "prompt"}), _NEWER | {"image_context", "mask"}),
}
_IMAGES = frozenset({"model_image", "garment_image", "product_image", "image", "image_context", "face_reference"})
_CHOICES = {
    "category": ("auto", "tops", "bottoms", "one-pieces"),
    "garment_photo_type": ("auto", "flat-lay", "model"),
    "mode": ("performance", "balanced", "quality"),
    "moderation_level": ("conservative", "permissive", "none"),
    "generation_mode": ("fast", "balanced", "quality"),
    "resolution": ("1k", "2k", "4k"),
    "output_format": ("png", "jpeg"),
}


@dataclass
class Prediction:
    """One prediction.

    Attributes:
        body: What it was asked for by.
        looks: Times that its status was read.
    """

    body: dict[str, Any]
    looks: int = 0
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-u1")


class FashnServer(ProviderServer):
    """FASHN on a port of its own.

    Attributes:
        key: The API key.
        predictions: Those that were accepted, in order.
        looks: Looks at a prediction until it ends; it never ends where None.
        ending: Status that it ends by.
        error: What a prediction that failed says.
        refusal: Name and message of what a run is answered with, and its status; None where it is accepted.
        credits: Credits that a completed prediction has used; None where no header says.
        output: Bytes behind the address of the result; a picture of the model image's size where None.
        typed: Media type of the result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = "fashn-key"  # pragma: allowlist secret
        self.predictions: list[Prediction] = []
        self.looks: int | None = 2
        self.ending = "completed"
        self.error: dict[str, str] | None = None
        self.refusal: tuple[int, str, str] | None = None
        self.credits: str | None = "1"
        self.output: bytes | None = None
        self.typed = "image/png"

    def charges(self, asked: Asked) -> bool:
        known = asked.headers.get("authorization") == f"Bearer {self.key}"
        return known and asked.method == "POST" and self.refusal is None

    async def answer(self, asked: Asked) -> Reply:
        prefix, _, name = asked.path.rpartition("/")
        if asked.method == "GET" and prefix.startswith("/cdn/"):
            return self._result(prefix.removeprefix("/cdn/"))
        if asked.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "UnauthorizedAccess", "Unauthorized: Invalid token")
        if (asked.method, asked.path) == ("POST", "/v1/run"):
            return self._run(asked.json)
        if (asked.method, prefix) == ("GET", "/v1/status"):
            return self._status(name)
        return _error(404, "NotFound", "Resource not found")

    def _run(self, body: Any) -> Reply:
        if self.refusal is not None:
            return _error(*self.refusal)
        if complaint := _complaint(body):
            return _error(400, "BadRequest", complaint)
        prediction = Prediction(body)
        self.predictions.append(prediction)
        return Reply.of({"id": prediction.id, "error": None})

    def _status(self, name: str) -> Reply:
        prediction = self._named(name)
        if prediction is None:
            return _error(404, "NotFound", "Prediction not found")
        prediction.looks += 1
        if self.looks is None or prediction.looks < self.looks:
            stage = ("starting", "in_queue", "processing")[min(prediction.looks - 1, 2)]
            return Reply.of({"id": prediction.id, "status": stage, "error": None})
        if self.ending != "completed":
            return Reply.of({"id": prediction.id, "status": self.ending, "error": self.error})
        output = [self._output(prediction)]
        reply = Reply.of({"id": prediction.id, "status": "completed", "output": output, "error": None})
        used = {} if self.credits is None else {CREDITS_HEADER: self.credits}
        return replace(reply, headers={**reply.headers, **used})

    def _result(self, name: str) -> Reply:
        """Serve a picture as the content network does: without a key."""
        prediction = self._named(name)
        if prediction is None:
            return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>", {"content-type": "application/xml"})
        return Reply(200, self._picture(prediction), {"content-type": self.typed})

    def _named(self, name: str) -> Prediction | None:
        return next((one for one in self.predictions if one.id == name), None)

    def _output(self, prediction: Prediction) -> str:
        if prediction.body["inputs"].get("return_base64"):
            return f"data:{self.typed};base64,{base64.b64encode(self._picture(prediction)).decode()}"
        return f"{self.url}/cdn/{prediction.id}/output_0.png"

    def _picture(self, prediction: Prediction) -> bytes:
        if self.output is not None:
            return self.output
        inputs = prediction.body["inputs"]
        given = picture_of(inputs.get("model_image") or inputs.get("image") or inputs["product_image"])
        out = io.BytesIO()
        # The models draw at sizes of their own: 864 x 1296 and the like.
        given.convert("RGB").resize((max(1, given.width * 3 // 4), max(1, given.height * 3 // 4))).save(out, "PNG")
        return out.getvalue()


def picture_of(source: str) -> Image.Image:
    """Open an input as FASHN does: a data URL with its media type."""
    head, _, data = source.partition(";base64,")
    if not head.startswith("data:image/"):
        raise ValueError("Unsupported image source")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def _complaint(body: Any) -> str:
    """Return what is wrong with a run's body; nothing if it is taken."""
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), dict):
        return "inputs must be an object"
    model, inputs = str(body.get("model_name")), body["inputs"]
    if model not in MODELS:
        return f"Unknown model_name {model!r}"
    required, optional = MODELS[model]
    if missing := sorted(required - set(inputs)):
        return f"Missing required inputs: {', '.join(missing)}"
    if unknown := sorted(set(inputs) - required - optional):
        return f"Unrecognized inputs: {', '.join(unknown)}"
    complaints = (_wrong_value(name, value) for name, value in inputs.items())
    return next((one for one in complaints if one), "")


def _wrong_value(name: str, value: Any) -> str:
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"{name} must be one of {', '.join(_CHOICES[name])}"
    if name == "seed" and not (type(value) is int and 0 <= value < 2**32):
        return "seed must be an integer from 0 to 2^32-1"
    if name == "prompt" and not isinstance(value, str):
        return "prompt must be a string"
    if name in _IMAGES:
        try:
            picture_of(value).load()
        except (ValueError, OSError, AttributeError):
            return f"{name} must be an image URL or base64 with the prefix data:image/<format>;base64,"
    return ""


def _error(status: int, name: str, message: str) -> Reply:
    return Reply.of({"error": name, "message": message}, status)
