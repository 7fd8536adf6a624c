"""Requests that cost money: each is written down before it is sent, and is never sent twice.

A provider either answers (`answered`) or takes the request and answers later (`queued`). A request that the provider
has taken survives its worker: another attempt finds it in `CallContext.open_requests`, and goes on with it. One of
which nobody knows whether it arrived is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from atelier.tasks.v1.enums_pb2 import ProviderType
from atelier.tasks.v1.phase_pb2 import (
    TASK_PHASE_FETCHING,
    TASK_PHASE_PROVIDER_QUEUED,
    TASK_PHASE_RUNNING,
)
from atelier.tasks.v1.service_requests_pb2 import (
    SERVICE_REQUEST_EFFECT_SUCCESS,
    SERVICE_REQUEST_STATE_ACCEPTED,
    SERVICE_REQUEST_STATE_DONE,
    SERVICE_REQUEST_STATE_FAILED,
    SERVICE_REQUEST_STATE_SENDING,
    SERVICE_REQUEST_STATE_UNKNOWN,
    ServiceRequest,
)

from meshkit.logging import get_logger
from meshkit.moments import duration_of
from meshkit.worker.handlers import CallContext, TaskFailed
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.measuring import measure
from services.inference.providers.wakes import ProviderWakes

_log = get_logger(__name__)

# A cancelled handler has five seconds in all.
_SETTLE_SECONDS = 2.0
_CALL_OFF_SECONDS = 2.0
_NOTE_SECONDS = 0.5
# What cannot be made of an answer now, for want of room, is tried so often; each pause is longer by the first one.
_FINISHES, _FINISH_SECONDS = 5, 2.0
_STEPS = 100
_QUEUED, _TAKEN, _MADE = 0, 10, 90

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often a provider is asked where a request stands: pauses grow from `first` to `last`, with jitter."""

    first: float = 0.5
    last: float = 5.0
    growth: float = 1.4

    def pause(self, looks: int) -> float:
        """Seconds to wait after so many looks."""
        ceiling = min(self.last, self.first * self.growth ** min(looks, 64))
        return ceiling * random.uniform(0.7, 1.0)  # noqa: S311 -- jitter, not a secret


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of whom.

    Attributes:
        provider_type: The provider, as tasks name it.
        provider: Its name in sentences (`fal`).
        target: Application or model, where the provider counts its limits by that.
        operation: What it is asked for. A task that makes several requests names each differently.
        seconds: How long it may take, from when it was sent, over all attempts.
        pacing: How often a queued one is looked at.
    """

    provider_type: ProviderType.ValueType
    provider: str
    target: str
    operation: str
    seconds: float
    pacing: Pacing = field(default_factory=Pacing)


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A provider's word that it has taken a request.

    Attributes:
        service_task_id: What it calls the request.
        resume: What another attempt needs to go on with it.
        http_status: Status of its answer.
    """

    service_task_id: str
    resume: Mapping[str, Any] = field(default_factory=dict)
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a request stands at its provider.

    Attributes:
        finished: Whether its result may be fetched.
        queued: Whether it waits for its turn.
        position: Requests before it, where the provider tells.
        share: How much of it is done, 0 to 1, where the provider tells.
    """

    finished: bool = False
    queued: bool = False
    position: int | None = None
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class ProviderAnswer(Generic[T]):
    """What a provider answered.

    Attributes:
        value: The answer.
        http_status: Its status.
        cost: What it costs, where the provider tells.
        currency: Currency, or the provider's own unit.
        service_task_id: What the provider calls the request, where it told only now.
    """

    value: T
    http_status: int | None = None
    cost: float | None = None
    currency: str = ""
    service_task_id: str = ""


class QueuedApi(Protocol[T]):
    """One request to a provider that answers later. Every method raises `ProviderError`."""

    async def submit(self) -> AcceptedRequest:
        """Send it; called once."""
        ...

    async def look(self, request: ServiceRequest) -> Standing:
        """Tell where it stands; an error whose fault is `FAILED` and the like says that it has ended without result."""
        ...

    async def fetch(self, request: ServiceRequest) -> ProviderAnswer[T]:
        """Return its result; safe to repeat."""
        ...

    async def call_off(self, request: ServiceRequest) -> bool:
        """Have the provider stop it; False where it cannot be stopped, or has ended already."""
        ...


async def queued(
    context: CallContext,
    api: QueuedApi[T],
    order: Order,
    finish: Callable[[ProviderAnswer[T]], Awaitable[R]],
    wakes: ProviderWakes | None = None,
) -> R:
    """Have a provider do something that it answers later.

    Args:
        context: The attempt.
        api: The request.
        order: What it is.
        finish: Makes the result of the answer, such as a file of the address in it. An error of it that passes leaves
            the request as it is, so that the next attempt fetches the result again and pays for nothing.
        wakes: Says that a request may have ended, so that it is looked at before its pause is over.

    Raises:
        TaskFailed: The provider did not do it.
    """
    call = _QueuedCall(context, api, order, wakes or ProviderWakes())
    try:
        return await call.run(finish)
    except ProviderError as error:
        raise error.failure() from error


async def answered(
    context: CallContext,
    call: Callable[[], Awaitable[ProviderAnswer[T]]],
    order: Order,
    finish: Callable[[ProviderAnswer[T]], Awaitable[R]],
) -> R:
    """Have a provider do something that it answers at once.

    Args:
        context: The attempt.
        call: Sends the request, and returns the answer; raises `ProviderError`. Called once at most.
        order: What it is.
        finish: Makes the result of the answer.

    Raises:
        TaskFailed: The provider did not do it.
    """
    try:
        return await _answered(context, call, order, finish)
    except ProviderError as error:
        raise error.failure() from error


async def _answered(
    context: CallContext,
    call: Callable[[], Awaitable[ProviderAnswer[T]]],
    order: Order,
    finish: Callable[[ProviderAnswer[T]], Awaitable[R]],
) -> R:
    ledger = _Ledger(context, order)
    if (found := ledger.found()) is not None:
        # It was sent, and its answer went with the worker that waited for it.
        error = ProviderError(Fault.UNKNOWN, order.provider)
        await ledger.end(found, error)
        raise error
    request = await ledger.begin()
    context.begins(TASK_PHASE_RUNNING)
    context.progress(_TAKEN, _STEPS)
    try:
        async with asyncio.timeout(order.seconds):
            answer = await call()
    except TimeoutError:
        # Whether it goes on, and is paid, is not known.
        late = ProviderError(Fault.LATE, order.provider, retryable=False)
        await ledger.end(request, late)
        raise late from None
    except ProviderError as error:
        await ledger.end(request, error)
        raise
    except asyncio.CancelledError:
        if context.called_off:
            await ledger.settle(request, ProviderError(Fault.CALLED_OFF, order.provider))
        raise
    context.begins(TASK_PHASE_FETCHING)
    try:
        result = await _finished(answer, finish)
    except ProviderError as error:
        await ledger.end(request, error)
        raise
    except asyncio.CancelledError:
        if context.called_off:
            await ledger.settle(request, ProviderError(Fault.CALLED_OFF, order.provider))
        raise
    except Exception:
        # The provider has done its part, whatever became of it here.
        await ledger.done(request, answer)
        raise
    await ledger.done(request, answer)
    return result


async def _finished(answer: ProviderAnswer[T], finish: Callable[[ProviderAnswer[T]], Awaitable[R]]) -> R:
    """Make the result of an answer that is there once: what this worker has no room for now is tried again.

    Raises:
        TaskFailed: It has none for long. Another attempt could not go on, and is not to be made.
    """
    for tried in itertools.count(1):
        try:
            return await finish(answer)
        except TaskFailed as error:
            if not error.retryable:
                raise
            if tried == _FINISHES:
                raise TaskFailed(error.message, error.category, retryable=False) from error
            _log.warning("result_not_made", tried=tried, category=error.category)
        await asyncio.sleep(_FINISH_SECONDS * tried)
    raise AssertionError("every way through the loop returns or raises")


class _Ledger:
    """Writes down where requests stand."""

    def __init__(self, context: CallContext, order: Order) -> None:
        self._context = context
        self._order = order

    def found(self) -> ServiceRequest | None:
        """Return the request that an earlier attempt has made of this order, and that has not failed, if any."""
        for request in self._context.open_requests:
            if request.provider_type == self._order.provider_type and request.operation == self._order.operation:
                found = ServiceRequest()
                found.CopyFrom(request)
                return found
        return None

    async def begin(self) -> ServiceRequest:
        """Write down that a request is about to be sent."""
        order = self._order
        request = ServiceRequest(
            id=str(uuid.uuid4()),
            provider_type=order.provider_type,
            target=order.target,
            operation=order.operation,
            state=SERVICE_REQUEST_STATE_SENDING,
        )
        request.sent_at.GetCurrentTime()
        await self._context.note(request)
        return request

    async def accepted(self, request: ServiceRequest, accepted: AcceptedRequest) -> None:
        """Write down that the provider has taken it."""
        request.state = SERVICE_REQUEST_STATE_ACCEPTED
        request.service_task_id = accepted.service_task_id
        request.resume.update(dict(accepted.resume))
        if accepted.http_status is not None:
            request.http_status = accepted.http_status
        await self._context.note(request)

    async def done(self, request: ServiceRequest, answer: ProviderAnswer[Any]) -> None:
        """Write down that the result is there."""
        request.state = SERVICE_REQUEST_STATE_DONE
        request.effect = SERVICE_REQUEST_EFFECT_SUCCESS
        request.service_task_id = request.service_task_id or answer.service_task_id
        if answer.http_status is not None:
            request.http_status = answer.http_status
        if answer.cost is not None:
            request.cost, request.currency = answer.cost, answer.currency
        request.ended_at.GetCurrentTime()
        measure(request, "done")
        await self._context.note(request)

    async def end(self, request: ServiceRequest, error: ProviderError) -> None:
        """Write down that it has ended without a result."""
        unknown = error.fault is Fault.UNKNOWN
        request.state = SERVICE_REQUEST_STATE_UNKNOWN if unknown else SERVICE_REQUEST_STATE_FAILED
        request.category = error.rule.category
        request.effect = error.rule.effect
        request.message = error.message
        if error.http_status is not None:
            request.http_status = error.http_status
        if error.retry_after is not None:
            request.retry_after.CopyFrom(duration_of(error.retry_after))
        request.ended_at.GetCurrentTime()
        measure(request, error.fault.value)
        await self._context.note(request)

    async def settle(self, request: ServiceRequest, error: ProviderError) -> None:
        """As `end`, of an attempt that is over: in a moment, and whether or not it is taken."""
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(_NOTE_SECONDS):
                await self.end(request, error)


class _QueuedCall(Generic[T]):
    """One request to a provider that answers later, from its sending to its result."""

    def __init__(self, context: CallContext, api: QueuedApi[T], order: Order, wakes: ProviderWakes) -> None:
        self._context = context
        self._api = api
        self._wakes = wakes
        self._order = order
        self._ledger = _Ledger(context, order)

    async def run(self, finish: Callable[[ProviderAnswer[T]], Awaitable[R]]) -> R:
        request = await self._taken()
        try:
            with self._wakes.waiting(self._context.job_id, request.service_task_id) as woken:
                await self._until_finished(request, woken)
            self._context.begins(TASK_PHASE_FETCHING)
            self._context.progress(_MADE, _STEPS)
            answer = await self._api.fetch(request)
            result = await finish(answer)
        except ProviderError as error:
            if not _left_open(error):
                await self._ledger.end(request, error)
            raise
        except asyncio.CancelledError:
            if self._context.called_off:
                await self._call_off_now(request)
            raise
        await self._ledger.done(request, answer)
        return result

    async def _taken(self) -> ServiceRequest:
        """Return a request that the provider has taken: an earlier attempt's, or a new one."""
        request = self._ledger.found()
        if request is None:
            request = await self._ledger.begin()
            await self._ledger.accepted(request, await self._submitted(request))
        elif not request.service_task_id:
            # No provider can be asked for a request whose name is not known.
            error = ProviderError(Fault.UNKNOWN, self._order.provider)
            await self._ledger.end(request, error)
            raise error
        else:
            _log.info("service_request_resumed", job_id=self._context.job_id, service_task_id=request.service_task_id)
        return request

    async def _submitted(self, request: ServiceRequest) -> AcceptedRequest:
        submit = asyncio.ensure_future(self._api.submit())
        try:
            return await asyncio.shield(submit)
        except ProviderError as error:
            await self._ledger.end(request, error)
            raise
        except asyncio.CancelledError:
            await self._settle(request, submit)
            raise

    async def _settle(self, request: ServiceRequest, submit: asyncio.Future[AcceptedRequest]) -> None:
        """Learn the name of a request that is on its way while its attempt ends: without it, it would be lost."""
        await asyncio.wait([submit], timeout=_SETTLE_SECONDS)
        if not submit.done():
            submit.cancel()
            return
        if submit.cancelled():
            return
        error = submit.exception()
        if isinstance(error, ProviderError):
            await self._ledger.settle(request, error)
        elif error is None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                async with asyncio.timeout(_NOTE_SECONDS):
                    await self._ledger.accepted(request, submit.result())
            if self._context.called_off:
                await self._call_off_now(request)

    async def _until_finished(self, request: ServiceRequest, woken: asyncio.Event) -> None:
        looks, queued = 0, True
        while not (standing := await self._standing(request)).finished:
            if standing.queued:
                self._context.begins(TASK_PHASE_PROVIDER_QUEUED, position=standing.position)
            else:
                if queued:
                    self._context.begins(TASK_PHASE_RUNNING)
                self._context.progress(_TAKEN + int((_MADE - _TAKEN) * standing.share), _STEPS)
            queued = standing.queued
            left = self._left(request)
            if left <= 0:
                await self._late(request)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._order.pacing.pause(looks), left)):
                    await woken.wait()
            woken.clear()  # before the look: what comes meanwhile leads to another
            looks += 1

    async def _standing(self, request: ServiceRequest) -> Standing:
        """Ask where it stands. That nobody answers just now ends nothing: it goes on at the provider."""
        try:
            async with asyncio.timeout(max(self._left(request), 1.0)):
                return await self._api.look(request)
        except TimeoutError:
            return Standing()
        except ProviderError as error:
            if not _left_open(error) or self._left(request) <= 0:
                raise
            _log.info("service_request_not_seen", job_id=self._context.job_id, fault=error.fault.value)
            return Standing()

    def _left(self, request: ServiceRequest) -> float:
        sent = request.sent_at.seconds + request.sent_at.nanos / 1e9
        return self._order.seconds - max(0.0, time.time() - sent)

    async def _late(self, request: ServiceRequest) -> None:
        """Call off what has taken too long; return where it has ended meanwhile.

        Raises:
            ProviderError: It has not. Another attempt may follow where the provider says that it has stopped: else
                both might be paid.
        """
        stopped = False
        with contextlib.suppress(ProviderError):
            stopped = await self._api.call_off(request)
            if not stopped and (await self._api.look(request)).finished:
                return
        raise ProviderError(Fault.LATE, self._order.provider, retryable=stopped)

    async def _call_off_now(self, request: ServiceRequest) -> None:
        """Have the provider stop what nobody waits for any more, within a few seconds."""
        stopped = False
        with contextlib.suppress(ProviderError, TimeoutError):
            async with asyncio.timeout(_CALL_OFF_SECONDS):
                stopped = await self._api.call_off(request)
        _log.info("service_request_called_off", job_id=self._context.job_id, stopped=stopped)
        await self._ledger.settle(request, ProviderError(Fault.CALLED_OFF, self._order.provider))


# What says nothing about the request itself, which the provider has taken: only that it could not be asked just now.
_PASSING = frozenset({Fault.UNSENT, Fault.BROKEN, Fault.LIMITED, Fault.UNKNOWN})


def _left_open(error: ProviderError) -> bool:
    return error.fault in _PASSING
