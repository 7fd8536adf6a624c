"""Freepik's Magnific upscalers as published: creative, precision, and precision v2.

https://docs.freepik.com/api-reference/image-upscaler-creative/post-image-upscaler and its siblings
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.providers.base import Asked, ProviderServer, Reply

CREATIVE = "/v1/ai/image-upscaler"
PRECISION = "/v1/ai/image-upscaler-precision"
PRECISION_V2 = "/v1/ai/image-upscaler-precision-v2"
MAX_PIXELS = 25_300_000
# What precision v1 enlarges by is not published; its bodies name no factor.
V1_FACTOR = 2

_PERCENTS = frozenset({"sharpen", "smart_grain", "ultra_detail"})
_LEVELS = frozenset({"creativity", "hdr", "resemblance", "fractality"})
_FIELDS: Mapping[str, frozenset[str]] = {
    CREATIVE: _LEVELS | {"image", "scale_factor", "optimized_for", "prompt", "engine", "filter_nsfw", "webhook_url"},
    PRECISION: _PERCENTS | {"image", "filter_nsfw", "webhook_url"},
    PRECISION_V2: _PERCENTS | {"image", "scale_factor", "flavor", "filter_nsfw", "webhook_url"},
}
_CHOICES = {
    "engine": ("automatic", "magnific_illusio", "magnific_sharpy", "magnific_sparkle"),
    "flavor": ("sublime", "photo", "photo_denoiser"),
    "optimized_for": (
        "standard",
        "soft_portraits",
        "hard_portraits",
        "art_n_illustration",
        "videogame_assets",
        "nature_n_landscapes",
        "films_n_photography",
        "3d_renders",
        "science_fiction_n_horror",
    ),
}


@dataclass
class UpscaleTask:
    """One task.

    Attributes:
        path: Path that it was created at.
        body: What it was asked for by.
        looks: Times that its status was read.
    """

    path: str
    body: dict[str, Any]
    looks: int = 0
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class FreepikServer(ProviderServer):
    """Freepik on a port of its own.

    Attributes:
        key: The API key.
        tasks: Those that were accepted, in order.
        looks: Looks at a task until it ends; it never ends where None.
        ending: Status that it ends by.
        refusal: Status and message that a create is answered with; None where it is accepted.
        output: Bytes behind the address of the result; the enlarged picture where None.
        typed: Media type of the result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = "freepik-key"  # pragma: allowlist secret
        self.tasks: list[UpscaleTask] = []
        self.looks: int | None = 2
        self.ending = "COMPLETED"
        self.refusal: tuple[int, str] | None = None
        self.output: bytes | None = None
        self.typed = "image/png"

    def charges(self, asked: Asked) -> bool:
        known = asked.headers.get("x-freepik-api-key") == self.key
        return known and asked.method == "POST" and self.refusal is None

    async def answer(self, asked: Asked) -> Reply:
        prefix, _, name = asked.path.rpartition("/")
        if (asked.method, prefix) == ("GET", "/generated"):
            return self._result(name.removesuffix(".png"))
        key = asked.headers.get("x-freepik-api-key")
        if key != self.key:
            return _error(401, "Invalid API key" if key else "Missing API key")
        if asked.method == "POST" and asked.path in _FIELDS:
            return self._create(asked.path, asked.json)
        if asked.method == "GET" and prefix in _FIELDS:
            return self._status(prefix, name)
        return _error(404, "Not found")

    def _create(self, path: str, body: Any) -> Reply:
        if self.refusal is not None:
            return _error(*self.refusal)
        if complaint := _complaint(path, body):
            name, reason = complaint
            problem = {"name": name, "reason": reason}
            message = "Your request parameters didn't validate."
            return Reply.of({"problem": {"message": message, "invalid_params": [problem]}}, 400)
        task = UpscaleTask(path, body)
        self.tasks.append(task)
        return Reply.of({"data": {"generated": [], "task_id": task.id, "status": "CREATED"}})

    def _status(self, path: str, name: str) -> Reply:
        task = self._named(name)
        if task is None or task.path != path:
            return _error(404, "Not found")
        task.looks += 1
        data: dict[str, Any] = {"generated": [], "task_id": task.id, "status": "IN_PROGRESS"}
        if self.looks is not None and task.looks >= self.looks:
            data["status"] = self.ending
            if self.ending == "COMPLETED":
                data["generated"] = [f"{self.url}/generated/{task.id}.png"]
        return Reply.of({"data": data})

    def _result(self, name: str) -> Reply:
        """Serve a picture as the content network does: without a key."""
        task = self._named(name)
        return Reply(404, b"gone") if task is None else Reply(200, self._picture(task), {"content-type": self.typed})

    def _named(self, name: str) -> UpscaleTask | None:
        return next((one for one in self.tasks if one.id == name), None)

    def _picture(self, task: UpscaleTask) -> bytes:
        if self.output is not None:
            return self.output
        given, factor = picture_of(task.body["image"]), _factor(task.path, task.body)
        out = io.BytesIO()
        given.convert("RGB").resize((given.width * factor, given.height * factor)).save(out, "PNG")
        return out.getvalue()


def picture_of(source: str) -> Image.Image:
    """Open an input as Freepik does: base64 without a prefix."""
    return Image.open(io.BytesIO(base64.b64decode(source, validate=True)))


def _factor(path: str, body: Mapping[str, Any]) -> int:
    if path == PRECISION:
        return V1_FACTOR
    return int(str(body.get("scale_factor", "2x" if path == CREATIVE else 2)).removesuffix("x"))


def _complaint(path: str, body: Any) -> tuple[str, str] | None:
    """Return the parameter that is wrong, and why; None where all are taken."""
    if not isinstance(body, dict):
        return "body", "The body must be an object"
    if unknown := sorted(set(body) - _FIELDS[path]):
        return unknown[0], f"Parameter '{unknown[0]}' is not known"
    try:
        image = picture_of(body["image"])
        image.load()
    except (KeyError, TypeError, ValueError, OSError):
        return "image", "Parameter 'image' must be a base64 image"
    if (wrong := _wrong_value(path, body)) is not None:
        return wrong, f"Parameter '{wrong}' is not valid"
    if image.width * image.height * _factor(path, body) ** 2 > MAX_PIXELS and path == CREATIVE:
        return "image", "The resulted image can't exceed maximum allowed size of 25.3 million pixels."
    return None


def _wrong_value(path: str, body: Mapping[str, Any]) -> str | None:
    for name, value in body.items():
        whole = type(value) is int
        if name in _LEVELS and not (whole and -10 <= value <= 10):
            return name
        if name in _PERCENTS and not (whole and 0 <= value <= 100):
            return name
        if name in _CHOICES and value not in _CHOICES[name]:
            return name
        if name == "prompt" and not isinstance(value, str):
            return name
        if name == "scale_factor":
            known = ("2x", "4x", "8x", "16x") if path == CREATIVE else range(2, 17)
            if value not in known or isinstance(value, bool):
                return name
    return None


def _error(status: int, message: str) -> Reply:
    return Reply.of({"message": message}, status)
