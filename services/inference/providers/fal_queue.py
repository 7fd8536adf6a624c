"""fal's queue: an application is asked, the request waits for its turn, and its result is fetched.

| what | request | answer |
|---|---|---|
| submit | `POST /{application}` | `request_id`, and the addresses of status, result and cancel |
| status | `GET` its address | 202 with `IN_QUEUE` (`queue_position`) or `IN_PROGRESS`; 200 with `COMPLETED` |
| result | `GET` its address | what the application answered, with its status |
| cancel | `PUT` its address | 202 with `CANCELLATION_REQUESTED`; 400 with `ALREADY_COMPLETED`; 404 |

fal would ask an application again by itself; `x-fal-no-retry` stops that, for the mesh has one retry layer. The
addresses of an answer are used where they lead to the configured origin, and are built else: the key goes nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from atelier.tasks.v1.service_requests_pb2 import ServiceRequest

from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.http import ProviderHttp, ProviderReply
from services.inference.providers.kit import ProviderKit
from services.inference.providers.paid import AcceptedRequest, ProviderAnswer, Standing

NAME = "fal"
# Behind it stands the identifier of the task whose request has ended.
WEBHOOK_PATH = "/webhooks/fal/"
APPLICATION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
# Applications whose names begin with one of these have a part more.
_NAMESPACES = frozenset({"workflows", "comfy"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ADDRESSES = {"status_url": "/status", "response_url": "", "cancel_url": "/cancel"}

# What fal's queue says of a request that the application did not answer, by `X-Fal-Error-Type` or `error_type`.
_LATE = frozenset({"request_timeout", "startup_timeout", "generation_timeout"})
_BAD = frozenset({"bad_request"})
_STOPPED = frozenset({"client_disconnected", "client_cancelled"})
# What an application says is wrong, by the type of the first item of `detail`.
_REFUSED = frozenset({"content_policy_violation"})
_EMPTY = frozenset({"no_media_generated"})
_ITS_OWN = frozenset({"internal_server_error", "downstream_service_error", "downstream_service_unavailable"})


def open_queue(kit: ProviderKit) -> FalQueue:
    """Return the worker's way to fal.

    Raises:
        ValueError: The installation has no key of fal.
    """
    key = kit.settings.fal_key.get_secret_value()
    if not key:
        raise ValueError("providers of fal need ATELIER_FAL_KEY or ATELIER_FAL_KEY_FILE")
    return FalQueue(kit.http(NAME, kit.settings.fal_url, {"authorization": f"Key {key}"}))


class FalQueue:
    """Calls fal's queue.

    Args:
        http: Connections to it, with the key.
    """

    def __init__(self, http: ProviderHttp) -> None:
        self._http = http

    async def submit(
        self, application: str, arguments: Mapping[str, Any], *, webhook: str = "", seconds: float | None = None
    ) -> AcceptedRequest:
        """Send a request, exactly once.

        Args:
            application: The application.
            arguments: What it is given.
            webhook: Address that fal tells when the request has ended; none where empty.
            seconds: After so long fal is to give it up.
        """
        if not APPLICATION.fullmatch(application):
            raise ProviderError(Fault.INVALID, NAME, "this is no application")
        limit = {} if seconds is None else {"x-fal-request-timeout": str(max(1, round(seconds)))}
        reply = await self._http.pay(
            f"/{application}",
            document=arguments,
            headers={"x-fal-no-retry": "1", **limit},
            params={"fal_webhook": webhook} if webhook else None,
        )
        if not reply.ok:
            raise error_of(reply)
        answer = reply.document()
        request_id = answer.get("request_id")
        if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
            # It was taken, and nobody can ask for it.
            raise reply.error(Fault.UNKNOWN)
        resume = {name: url for name in _ADDRESSES if (url := self._http.own(answer.get(name))) is not None}
        return AcceptedRequest(request_id, {"application": application, **resume}, reply.status)

    async def look(self, request: ServiceRequest) -> Standing:
        """Tell where a request stands."""
        reply = await self._http.get(self._address(request, "status_url"))
        if reply.status == 202 and not reply.body:
            return Standing()
        if not reply.ok:
            # A status that is not known here says that the request is not known.
            raise reply.error(Fault.FAILED) if reply.status in (400, 404, 410, 422) else error_of(reply)
        answer = reply.document()
        match answer.get("status"):
            case "IN_QUEUE":
                position = answer.get("queue_position")
                known = isinstance(position, int) and not isinstance(position, bool) and position >= 0
                return Standing(queued=True, position=position if known else None)
            case "IN_PROGRESS":
                return Standing()
            case "COMPLETED":
                if answer.get("error") or answer.get("error_type"):
                    raise await self._failed(request, reply, answer)
                return Standing(finished=True)
            case _:
                raise reply.error(Fault.EMPTY)

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[dict[str, Any]]:
        """Return what the application answered."""
        reply = await self._http.get(self._address(request, "response_url"))
        if reply.status == 202 or (reply.status == 400 and "in progress" in _text(reply)):
            raise reply.error(Fault.BROKEN)  # it will be there in a moment
        if not reply.ok:
            raise job_error(reply)
        return ProviderAnswer(reply.document(), reply.status)

    async def call_off(self, request: ServiceRequest) -> bool:
        """Have fal stop a request; False where it has ended, or is not known."""
        return (await self._http.put(self._address(request, "cancel_url"))).ok

    async def _failed(self, request: ServiceRequest, reply: ProviderReply, answer: Mapping[str, Any]) -> ProviderError:
        """Return why a request failed: its result says more than its status."""
        try:
            result = await self._http.get(self._address(request, "response_url"), tries=1)
        except ProviderError:
            result = reply
        if not result.ok and _detail(result) is not None:
            return job_error(result)
        kind, reason = str(answer.get("error_type") or ""), str(answer.get("error") or "")
        return _job_error_of(reply, kind, reason)

    def _address(self, request: ServiceRequest, name: str) -> str:
        resume = request.resume.fields
        if name in resume and (url := self._http.own(resume[name].string_value)) is not None:
            return url
        parts = resume["application"].string_value.split("/") if "application" in resume else request.target.split("/")
        owner = "/".join(parts[: 3 if parts[0] in _NAMESPACES else 2])
        return f"/{owner}/requests/{request.service_task_id}{_ADDRESSES[name]}"


def error_of(reply: ProviderReply) -> ProviderError:
    """Return what an answer of the queue itself means: of a submit, or of a status."""
    reason = _reason(reply)
    if reply.status in (400, 422):
        return reply.error(Fault.REFUSED if _kinds(reply) & _REFUSED else Fault.INVALID, reason)
    # The reasons of other statuses are about this installation's account, and not its callers'.
    return reply.error()


def job_error(reply: ProviderReply) -> ProviderError:
    """Return what the answer of an application that failed means."""
    if _detail(reply) is None:
        return reply.error()
    kind = reply.headers.get("x-fal-error-type", "")
    document = reply.json()
    return _job_error_of(reply, kind or str(document.get("error_type") or ""), _reason(reply))


def _job_error_of(reply: ProviderReply, kind: str, reason: str) -> ProviderError:
    kinds = _kinds(reply) | {kind}
    if kinds & _REFUSED:
        fault = Fault.REFUSED
    elif kinds & _LATE:
        fault = Fault.LATE
    elif kinds & _STOPPED:
        fault = Fault.CALLED_OFF
    elif kinds & _EMPTY:
        fault = Fault.EMPTY
    elif kinds & _BAD or (reply.status in (400, 422) and not kinds & _ITS_OWN):
        fault = Fault.INVALID
    elif reply.status in (401, 402, 403, 429):
        return reply.error()
    else:
        # fal charges nothing for an application that broke.
        fault = Fault.FAILED
    error = reply.error(fault, reason)
    if fault is Fault.FAILED:
        said = reply.headers.get("x-fal-retryable", reply.headers.get("x-fal-needs-retry", "")).strip().lower()
        error.retryable = said not in ("false", "0")
    return error


def _detail(reply: ProviderReply) -> Any:
    document = reply.json()
    return document.get("detail") if isinstance(document, dict) else None


def _kinds(reply: ProviderReply) -> set[str]:
    detail = _detail(reply)
    items = detail if isinstance(detail, list) else []
    return {str(item.get("type")) for item in items if isinstance(item, dict)}


def _reason(reply: ProviderReply) -> str:
    """Return what an answer says is wrong, of either shape: a sentence, or a list of places and sentences."""
    detail = _detail(reply)
    if isinstance(detail, str):
        return detail
    parts = []
    for item in detail if isinstance(detail, list) else []:
        if isinstance(item, dict) and isinstance(item.get("msg"), str):
            where = item.get("loc")
            names = [str(part) for part in where if part != "body"] if isinstance(where, list) else []
            parts.append(f"{'.'.join(names)}: {item['msg']}" if names else item["msg"])
    return "; ".join(parts)


def _text(reply: ProviderReply) -> str:
    return reply.body[:1000].decode(errors="replace").lower()
