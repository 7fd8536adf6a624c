"""Sends webhooks: what is due is claimed, sent, and its outcome written; a loop of the service calls it.

At most a few requests of a tenant go to one target at a time, and a tenant has a share of all requests, so that a
receiver that is dead or slow takes nothing from others. One that did not answer is asked by one request at a time until
it does, and all of these together take half of their tenant's share.

A sender keeps the lease of what it sends. One that is killed, or stands still, between the request and the note of it
leaves a lease that ends: the delivery is sent again, under the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from datetime import timedelta
from uuid import UUID

from meshkit import metrics, spans, tracing
from meshkit.errors import ErrorKind, MeshError
from meshkit.fetcher import Fetcher
from meshkit.logging import get_logger
from meshkit.loops import Loop, cancel, coalesced
from meshkit.media_urls import MediaLinks
from services.tasks.media import with_media
from services.tasks.webhooks import domain as webhooks
from services.tasks.webhooks.domain import (
    ClaimedDelivery,
    ClaimRoom,
    DeliveryFailure,
    DeliveryStatus,
    DeliveryVerdict,
    ReceiverAnswer,
    ReceiverLane,
)
from services.tasks.webhooks.store import WebhookStore

_log = get_logger(__name__)

IN_FLIGHT = 512
PER_TENANT = 64
PER_TARGET = 4
# However full the sender is, a tenant may have as many.
LEAST_PER_TENANT = 4
# Silent lanes that are remembered; one that is forgotten is asked as if it had answered.
SILENT_KEPT = 4096
# A burst of answers leaves the database's connections to callers and workers.
WRITERS = 2
INTERVAL_SECONDS = 0.5
# A claim reads the whole order of what waits: answers that come together are followed by one.
CLAIM_LINGER_SECONDS = 0.02
SECRETS_INTERVAL_SECONDS = 600.0
STOP_SECONDS = 2.0

_ATTEMPTS = metrics.counter("tasks_webhook_attempts", "Requests to receivers of webhooks", ("outcome",))
_ENDED = metrics.counter("tasks_webhooks_ended", "Webhooks delivered or given up", ("outcome",))


class Sender:
    """Sends what is due.

    Args:
        store: Deliveries.
        fetcher: Sends to callers' addresses, guarded.
        links: Makes the addresses of results; None where the mesh is not told its own.
        in_flight: Requests at a time.
        per_tenant: Those among them of one tenant.
        per_target: Those of one tenant to one host and port.
        clock: Monotonic seconds, which go on while the process stands still.
    """

    def __init__(
        self,
        store: WebhookStore,
        fetcher: Fetcher,
        *,
        links: MediaLinks | None = None,
        in_flight: int = IN_FLIGHT,
        per_tenant: int = PER_TENANT,
        per_target: int = PER_TARGET,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._links = links
        self._in_flight = in_flight
        self._per_tenant = per_tenant
        self._per_target = per_target
        self._under_way: Counter[ReceiverLane] = Counter()
        self._silent: OrderedDict[ReceiverLane, None] = OrderedDict()  # by when they were last given a request
        self._sending: set[asyncio.Task[None]] = set()
        self._clock = clock
        # What is under way, and by this process's clock until when its lease lasts at least.
        self._held: dict[UUID, tuple[ClaimedDelivery, float]] = {}
        self._writing = asyncio.Semaphore(WRITERS)
        self._wake = asyncio.Event()
        self._claim_soon = coalesced(self._wake.set, CLAIM_LINGER_SECONDS)
        self.loops = (
            Loop("tasks-webhooks", self.run_once, INTERVAL_SECONDS, jitter=0.2, wake=self._wake),
            Loop("tasks-webhooks-leases", self.extend, webhooks.EXTEND_SECONDS / 2),
            Loop("tasks-webhooks-secrets", store.forget_secrets, SECRETS_INTERVAL_SECONDS),
        )

    async def run_once(self) -> None:
        """Claim what is due and begin to send it; body of a loop."""
        free = self._in_flight - len(self._sending)
        if free <= 0:
            return
        begun = self._clock()
        for claimed in await self._store.claim(self._room(free)):
            self._under_way[ReceiverLane(claimed.tenant, claimed.target)] += 1
            self._held[claimed.id] = claimed, begun + webhooks.LEASE.total_seconds()
            task = asyncio.create_task(self._deliver(claimed))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def extend(self) -> None:
        """Keep what takes long; body of a loop."""
        begun = self._clock()
        until = begun + webhooks.LEASE.total_seconds()
        aged = {
            claimed.id: claimed.lease
            for claimed, held in self._held.values()
            if held + webhooks.EXTEND_SECONDS <= until
        }
        if aged:
            for ident in await self._store.extend(aged):
                if ident in self._held:
                    self._held[ident] = self._held[ident][0], until

    def _room(self, free: int) -> ClaimRoom:
        tenants: Counter[str] = Counter()
        for lane, count in self._under_way.items():
            tenants[lane.tenant] += count
        # What is left is for tenants that have nothing yet: no tenant takes more than a quarter of it.
        share = min(self._per_tenant, max(LEAST_PER_TENANT, free // 4))
        return ClaimRoom(free, share, self._per_target, tenants, self._counted())

    def _counted(self) -> Mapping[ReceiverLane, int]:
        """Count requests under way, and more where no answer comes: such a lane is given one at a time, or none."""
        lanes = dict(self._under_way)
        asked = Counter(lane.tenant for lane in self._silent if lane in self._under_way)
        for lane in list(self._silent):
            if lane not in self._under_way and asked[lane.tenant] < max(1, self._per_tenant // 2):
                asked[lane.tenant] += 1
                lanes[lane] = self._per_target - 1
                self._silent.move_to_end(lane)
            else:
                lanes[lane] = self._per_target
        return lanes

    def _note(self, lane: ReceiverLane, answer: ReceiverAnswer) -> None:
        if answer.status_code is not None:
            self._silent.pop(lane, None)
        elif not answer.refused:
            self._silent[lane] = None
            if len(self._silent) > SILENT_KEPT:
                self._silent.popitem(last=False)

    async def settled(self) -> None:
        """Wait for the requests under way."""
        while self._sending:
            await asyncio.wait(set(self._sending))

    async def close(self) -> None:
        """Let requests under way end if they do so soon; the others are sent again when their leases end."""
        if self._sending:
            _, late = await asyncio.wait(set(self._sending), timeout=STOP_SECONDS)
            await cancel(late)

    async def _deliver(self, claimed: ClaimedDelivery) -> None:
        lane = ReceiverLane(claimed.tenant, claimed.target)
        tracing.use(tracing.begin(claimed.traceparent))
        tracing.assign_tenant(claimed.tenant)
        try:
            if claimed.disabled:
                answer, verdict = None, DeliveryVerdict(DeliveryStatus.FAILED, failure=DeliveryFailure.GONE)
            elif self._clock() >= self._held[claimed.id][1]:
                return  # this process stood still: another sends it, or has sent it
            else:
                answer = await self._send(claimed)
                self._note(lane, answer)
                verdict = webhooks.judge(answer, claimed.tries, random.uniform(-1, 1))  # noqa: S311 -- jitter
                _ATTEMPTS.labels("failed" if answer.error else "delivered").inc()
                _record(claimed, answer)
            async with self._writing:
                kept = await self._store.finish(claimed, answer, verdict)
            if kept and verdict.status is not DeliveryStatus.PENDING:
                _ENDED.labels((verdict.failure or verdict.status).lower()).inc()
        except Exception:
            # Its lease ends, and it is sent again.
            _log.exception("webhook_outcome_not_written", delivery=str(claimed.id))
        finally:
            del self._held[claimed.id]
            self._under_way[lane] -= 1
            if not self._under_way[lane]:
                del self._under_way[lane]
            self._claim_soon()

    async def _send(self, claimed: ClaimedDelivery) -> ReceiverAnswer:
        begun = time.perf_counter()
        status, error, refused, asked = None, None, False, timedelta()
        body = with_media(claimed.body, claimed.tenant, claimed.media, self._links)
        try:
            reply = await self._fetcher.post(
                claimed.url,
                body,
                webhooks.headers(claimed.id, claimed.now, body, claimed.keys),
                webhooks.TIMEOUT_SECONDS,
                path="webhook_url",
                tenant=claimed.tenant,
            )
            status = reply.status
            asked = webhooks.asked_wait(status, reply.retry_after, claimed.now)
            if not 200 <= status < 300:
                error = f"The receiver answered {status}"
        except MeshError as problem:
            # A name that does not exist may do so again; an address that is refused will be refused again.
            types = {violation.type for violation in problem.violations}
            refused = problem.kind is ErrorKind.INVALID and "url_host" not in types
            error = "; ".join(f"{v.path} {v.message}" for v in problem.violations) or problem.message
        seconds = time.perf_counter() - begun
        return ReceiverAnswer(status, error and error[: webhooks.MAX_ERROR_LENGTH], refused, seconds, asked)


def _record(claimed: ClaimedDelivery, answer: ReceiverAnswer) -> None:
    """Record a request under the trace of its task, which it takes up after a wait."""
    trace = tracing.current()
    if trace is None or not claimed.traceparent or not spans.recording(trace):
        return
    attributes: dict[str, str | int] = {
        "messaging.system": "atelier",
        "messaging.operation.type": "send",
        "messaging.message.id": str(claimed.id),
        "server.address": claimed.target,
        "atelier.tenant": claimed.tenant,
        "atelier.try": claimed.tries + 1,
    }
    if answer.status_code is not None:
        attributes["http.response.status_code"] = answer.status_code
    failure = str(answer.status_code or "no_answer") if answer.error else ""
    kind = spans.SpanKind.CLIENT
    spans.record(trace, "webhook", kind, seconds=answer.seconds, attributes=attributes, linked=True, failure=failure)
