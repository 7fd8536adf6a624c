"""fal's queue as it is published, and its bad days.

Requests wait for `queue_looks` looks in the queue and `running_looks` looks with an application; what the application
does is a function of the test's.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.providers.base import Asked, ProviderServer, Reply, png

Application = Callable[[str, Mapping[str, Any]], Reply]


@dataclass
class FalRequest:
    """One request at fal."""

    id: str
    application: str
    arguments: Mapping[str, Any]
    webhook: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    looks: int = 0
    cancelled: bool = False
    answer: Reply | None = None


class FalServer(ProviderServer):
    """fal's queue on a port of its own.

    Attributes:
        requests: Requests that were taken, by identifier.
        application: What is done with one: gets the application's name and the arguments.
        never: Whether requests stay with their application for ever.
        cancellable: Whether a cancel is granted.
    """

    key = "fal-tests"

    def __init__(self, application: Application | None = None) -> None:
        super().__init__()
        self.requests: dict[str, FalRequest] = {}
        self.uploads: dict[str, str] = {}  # media types by name
        self.application = application or self.draw
        self.queue_looks = 1
        self.running_looks = 1
        self.never = False
        self.cancellable = True
        self.foreign_addresses = False
        self.empty_202 = False
        self._numbers = itertools.count(1)

    def draw(self, application: str, arguments: Mapping[str, Any]) -> Reply:
        """Make a picture of the size that was asked for, as most applications answer."""
        size = arguments.get("image_size", {"width": 64, "height": 48})
        url = self.serve_file(f"{next(self._numbers)}.png", png(size["width"], size["height"]))
        return Reply.of({"images": [{"url": url, "content_type": "image/png", **size}], "seed": arguments.get("seed")})

    @property
    def submits(self) -> int:
        """Requests that were taken."""
        return len(self.requests)

    async def answer(self, asked: Asked) -> Reply:
        if asked.method == "PUT" and asked.path.startswith("/uploads/"):
            return self._upload(asked)
        if asked.headers.get("authorization") != f"Key {self.key}":
            return Reply.of({"detail": "Authentication is required"}, 401)
        if asked.path == "/storage/upload/initiate":
            name = f"upload-{next(self._numbers)}"
            self.uploads[name] = asked.json["content_type"]
            return Reply.of(
                {"upload_url": f"{self.url}/uploads/{name}?signature=x", "file_url": f"{self.url}/files/{name}"}
            )
        if asked.method == "POST":
            return self._submit(asked)
        found = re.fullmatch(r"/(?P<owner>.+)/requests/(?P<id>[^/]+)(?P<what>/status|/cancel)?", asked.path)
        request = self.requests.get(found["id"]) if found is not None else None
        if found is None or request is None or not request.application.startswith(found["owner"]):
            return Reply.of({"detail": "Request not found", "status": "NOT_FOUND"}, 404)
        match asked.method, found["what"]:
            case "GET", "/status":
                return self._status(request)
            case "GET", None:
                return self._result(request)
            case "PUT", "/cancel":
                return self._cancel(request)
        return Reply.of({"detail": "Method not allowed"}, 405)

    def charges(self, asked: Asked) -> bool:
        return super().charges(asked) and not asked.path.startswith("/storage/")

    def _upload(self, asked: Asked) -> Reply:
        name = asked.path.removeprefix("/uploads/")
        if "authorization" in asked.headers or asked.headers.get("content-type") != self.uploads.get(name):
            return Reply(403)
        self.serve_file(name, asked.body, self.uploads[name])
        return Reply(200)

    def _submit(self, asked: Asked) -> Reply:
        request = FalRequest(
            f"00000000-0000-4000-8000-{next(self._numbers):012d}",
            asked.path.lstrip("/"),
            asked.json,
            asked.query.get("fal_webhook", ""),
            asked.headers,
        )
        self.requests[request.id] = request
        return Reply.of({"status": "IN_QUEUE", "request_id": request.id, "queue_position": 0, **self._urls(request)})

    def _urls(self, request: FalRequest) -> dict[str, str]:
        parts = request.application.split("/")
        owner = "/".join(parts[: 3 if parts[0] in ("workflows", "comfy") else 2])
        base = f"{'http://127.0.0.1:9' if self.foreign_addresses else self.url}/{owner}/requests/{request.id}"
        return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}

    def _standing(self, request: FalRequest) -> str:
        if request.cancelled:
            return "COMPLETED"
        if request.looks <= self.queue_looks:
            return "IN_QUEUE"
        if self.never or request.looks <= self.queue_looks + self.running_looks:
            return "IN_PROGRESS"
        if request.answer is None:
            request.answer = self.application(request.application, request.arguments)
        return "COMPLETED"

    def _status(self, request: FalRequest) -> Reply:
        request.looks += 1
        status = self._standing(request)
        body: dict[str, Any] = {"status": status, "request_id": request.id, **self._urls(request)}
        if status == "IN_QUEUE":
            return Reply.of({**body, "queue_position": self.queue_looks - request.looks}, 202)
        if status == "IN_PROGRESS":
            return Reply(202) if self.empty_202 else Reply.of({**body, "logs": []}, 202)
        body |= {"logs": [], "metrics": {"inference_time": 1.25}}
        if request.cancelled:
            body |= {"error": "Request was cancelled", "error_type": "client_cancelled"}
        elif request.answer is not None and request.answer.status >= 400:
            body |= {"error": "The application failed", "error_type": request.answer.headers.get("x-fal-error-type")}
        return Reply.of(body)

    def _result(self, request: FalRequest) -> Reply:
        if request.answer is None:
            return Reply.of({"detail": "Request is still in progress"}, 400)
        return request.answer

    def _cancel(self, request: FalRequest) -> Reply:
        if request.answer is not None:
            return Reply.of({"status": "ALREADY_COMPLETED"}, 400)
        if not self.cancellable:
            return Reply.of({"status": "NOT_FOUND"}, 404)
        request.cancelled = True
        return Reply.of({"status": "CANCELLATION_REQUESTED"}, 202)


def model_error(kind: str, message: str, status: int = 422, **headers: str) -> Reply:
    """An error as an application tells it."""
    item = {"loc": ["body", "prompt"], "msg": message, "type": kind, "url": "https://docs.fal.ai/errors", "input": "x"}
    return Reply.of({"detail": [item]}, status, **headers)


def request_error(kind: str, message: str, status: int) -> Reply:
    """An error as the queue tells it of a request that the application did not answer."""
    return Reply.of({"detail": message, "error_type": kind}, status, x_fal_error_type=kind)
