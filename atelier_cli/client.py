"""The gateway's JSON API, as the commands use it.

Requests survive a restart of the gateway: reads are repeated, creates too because they carry an `Idempotency-Key`, and
a watched stream resumes after the last event.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from atelier_cli.errors import CliError, ExitCode
from atelier_cli.files import save
from atelier_cli.folder import DataFolder
from atelier_cli.tokens import DEFAULT_TENANT, issue

_TOKEN_SECONDS: Final = 24 * 3600.0
_PATIENCE_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.5
# A large file is judged as a whole before it is answered.
_UPLOAD_SECONDS: Final = 900.0
# The gateway sends a comment more often than this on a silent stream.
_STREAM_SILENCE_SECONDS: Final = 60.0
_PASSING: Final = frozenset({502, 503, 504})
_Json = TypeVar("_Json", dict[str, Any], list[Any])
ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """One event of a watched task.

    Attributes:
        task: The task as it stood.
        step: Steps done, where the worker reports them.
        total_steps: Steps in all.
        phase: What it is at, where that is told.
        tasks_ahead: While it waits, the tasks of its tenant that are served before it.
        text: The text so far, where the result is text.
    """

    task: Mapping[str, Any]
    step: int | None
    total_steps: int | None
    phase: str | None = None
    tasks_ahead: int | None = None
    text: str | None = None


class Gateway:
    """A client of one gateway.

    Args:
        url: Its address.
        token: A callable that returns the bearer token.
        transport: Replaces the network, for tests.
        patience_seconds: How long to retry while it cannot be reached.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        transport: httpx.BaseTransport | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._url = url
        self._token = token
        self._patience = patience_seconds
        self._heard = 0.0
        self._http = httpx.Client(base_url=url, timeout=30.0, follow_redirects=True, transport=transport)

    @classmethod
    def of(
        cls, folder: DataFolder, tenant: str = DEFAULT_TENANT, scopes: Iterable[str] = ("read", "write")
    ) -> "Gateway":
        """Return the gateway of the mesh on a folder, or $ATELIER_URL with $ATELIER_TOKEN."""
        url = _address(os.environ.get("ATELIER_URL")) or folder.running().gateway_url
        given = os.environ.get("ATELIER_TOKEN")
        if given and not (given.isascii() and given.isprintable()):
            raise CliError("ATELIER_TOKEN is no token: it has characters that no token has.", ExitCode.USAGE)
        text = given or issue(folder, tenant=tenant, scopes=scopes, ttl_seconds=_TOKEN_SECONDS)
        return cls(url, lambda: text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def create(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Create a task once, however often the request is sent."""
        return self.call("POST", "/api/v1/tasks/", json=task)

    def task(self, task_id: str) -> dict[str, Any]:
        """One task."""
        return self.call("GET", f"/api/v1/tasks/{segment(task_id)}")

    def tasks(self, **filters: str | int | None) -> list[dict[str, Any]]:
        """Tasks, newest first."""
        return self._listed("/api/v1/tasks/", filters)

    def deliveries(self, **filters: str | int | None) -> list[dict[str, Any]]:
        """Deliveries of webhooks, newest first."""
        return self._listed("/api/v1/webhooks/deliveries", filters)

    def cancel(self, task_id: str) -> dict[str, Any]:
        """Cancel a task."""
        return self.call("POST", f"/api/v1/tasks/{segment(task_id)}/cancel")

    def call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Send any other request that returns an object; a POST takes effect once, however often it is sent."""
        if method == "POST":
            arguments["headers"] = {"idempotency-key": str(uuid.uuid4())}
        return dict(self._read(self._send(method, path, **arguments), dict))

    def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> dict[str, Any]:
        """Send a file with the fields of a form, once: whether it arrived where no answer came is not known."""
        with file.open("rb") as content:
            try:
                answer = self._http.post(
                    path,
                    headers=self._headers(),
                    files={"file": (file.name, content)},
                    data=dict(fields),
                    timeout=_UPLOAD_SECONDS,
                )
            except httpx.TransportError as error:
                raise self._unreachable() from error
        _refuse(answer)
        return dict(self._read(answer, dict))

    def listed(self, path: str, **filters: str | int | None) -> list[dict[str, Any]]:
        """Send a request that returns a list."""
        return self._listed(path, filters)

    def fetch(self, path: str, **filters: Any) -> bytes:
        """Return the content at a path of the API, whatever it is."""
        return self._send("GET", path, params=filters or None).content

    def store(self, path: str, data: bytes) -> None:
        """Store an image; the same bytes at the same path are stored once."""
        self._send("POST", f"/api/v1/storage/images/{path}", content=data)

    def download(self, path: str, to: Path) -> None:
        """Save a stored file, whole or not at all."""
        answer = self._send("GET", f"/api/v1/storage/images/{path}")
        save(to, answer.content)

    def watch(self, task_id: str) -> Iterator[TaskProgress]:
        """Follow a task until it has ended, over as many connections as needed.

        Raises:
            CliError: The gateway refused, or could not be reached for too long.
        """
        for event in self.follow(f"/api/v1/tasks/{segment(task_id)}/events"):
            yield TaskProgress(
                event["task"],
                event.get("step"),
                event.get("total_steps"),
                event.get("phase"),
                event.get("tasks_ahead"),
                event.get("text"),
            )
            if event["task"]["status"] in ENDED:
                return

    def follow(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream until its last one, over as many connections as needed.

        Raises:
            CliError: As for `watch`.
        """
        seen: str | None = None
        self._heard = time.monotonic()
        while True:
            try:
                for identity, name, data in self._stream(path, seen):
                    event = json.loads(data)
                    if name == "error":
                        if event["status"] not in _PASSING:
                            raise _refusal(event["status"], event["detail"])
                        break
                    seen = identity or seen
                    yield event
                    if event.get("final"):
                        return
            except httpx.TransportError:
                pass
            if time.monotonic() - self._heard > self._patience:
                raise self._unreachable()
            time.sleep(_PAUSE_SECONDS)

    def _listed(self, path: str, filters: Mapping[str, str | int | None]) -> list[dict[str, Any]]:
        chosen = {name: value for name, value in filters.items() if value is not None}
        return list(self._read(self._send("GET", path, params=chosen), list))

    def _read(self, answer: httpx.Response, kind: type[_Json]) -> _Json:
        """Return the JSON of an answer."""
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, kind):
            raise CliError(f"What answers at {self._url} is no gateway of a mesh.")
        return found

    def _stream(self, path: str, seen: str | None) -> Iterator[tuple[str | None, str, str]]:
        """Yield the events of one connection after `seen`; none while the gateway or a service cannot be reached."""
        headers = self._headers() | {"accept": "text/event-stream"} | ({"last-event-id": seen} if seen else {})
        timeout = httpx.Timeout(10.0, read=_STREAM_SILENCE_SECONDS)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if answer.status_code in _PASSING:
                return
            if answer.is_error:
                answer.read()
                _refuse(answer)
            yield from events(self._noted(answer.iter_lines()))

    def _noted(self, lines: Iterator[str]) -> Iterator[str]:
        """Yield lines as they arrive; a waiting task sends only comments, which show that its gateway lives."""
        for line in lines:
            self._heard = time.monotonic()
            yield line

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = self._headers() | arguments.pop("headers", {})
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self._http.request(method, path, headers=headers, **arguments)
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise self._unreachable() from error
            except httpx.RequestError as error:
                raise CliError(f"What answers at {self._url} is no gateway of a mesh.") from error
            else:
                if answer.status_code not in _PASSING or time.monotonic() > deadline:
                    _refuse(answer)
                    return answer
            time.sleep(_PAUSE_SECONDS)

    def _headers(self) -> dict[str, str]:
        # Who types a member by hand wants to be told of a slip.
        return {"authorization": f"Bearer {self._token()}", "prefer": "handling=strict"}

    def _unreachable(self) -> CliError:
        return CliError(f"The gateway at {self._url} cannot be reached.", ExitCode.NOT_RUNNING)


def segment(text: str) -> str:
    """Return an identifier as a part of a path.

    Raises:
        CliError: No identifier reads like this.
    """
    if text in {"", ".", ".."}:
        raise CliError(f"{text!r} is no identifier.", ExitCode.USAGE)
    return quote(text, safe="")


def events(lines: Iterator[str]) -> Iterator[tuple[str | None, str, str]]:
    """Yield server-sent events as (id, name, data); skip comments and unused fields."""
    identity: str | None = None
    event = "message"
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield identity, event, "\n".join(data)
            identity, event, data = None, "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id":
            identity = value
        elif name == "event":
            event = value


def _address(url: str | None) -> str | None:
    """Return the address of a gateway, checked."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        # The port is read, and judged, only when it is asked for.
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        right = False
    if not right:
        raise CliError(f"ATELIER_URL is {url!r}, which is no address; right is http://host:port.", ExitCode.USAGE)
    return url


def _refuse(answer: httpx.Response) -> None:
    """Turn an error status into a sentence."""
    if not answer.is_error:
        return
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    raise _refusal(answer.status_code, detail)


def _fault(violation: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in violation["loc"][1:])
    return f"{place}: {violation['msg']}" if place else str(violation["msg"])


def _refusal(status: int, detail: Any) -> CliError:
    if isinstance(detail, list):
        detail = "; ".join(_fault(each) for each in detail)
    code = ExitCode.NOT_ALLOWED if status in {401, 403} else ExitCode.FAILED
    return CliError(f"The mesh answered {status}: {detail}", code)
