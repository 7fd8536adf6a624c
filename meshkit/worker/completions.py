"""Completions on their way to the service: those that are ready together travel in one RPC.

One that is alone waits for nobody. Where the worker holds more attempts, a completion waits a moment for the next ones,
and what becomes ready during a call gathers for the next: a call and its commit cost the service nearly as much for one
as for ten.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from atelier.tasks.v1.worker_service_pb2 import (
    COMPLETION_VERDICT_LOST,
    COMPLETION_VERDICT_REFUSED,
    COMPLETION_VERDICT_TAKEN,
    CompleteManyRequest,
    CompleteManyResponse,
    Completion,
    CompletionOutcome,
)

from meshkit.errors import ErrorKind, MeshError, conflict, unavailable

_MAX_MEMBERS = 256  # bound of CompleteManyRequest.completions
_GATHER_SECONDS = 0.004
_MAX_BYTES = 1 << 20  # small results share a call; a large one does not hold up others


class _PendingCompletion(NamedTuple):
    session_id: str
    completion: Completion
    ended: asyncio.Future[None]


class Completions:
    """Sends completions, gathered.

    Args:
        call: Makes the RPC.
        held: How many attempts the worker holds, those that wait here among them.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        call: Callable[[CompleteManyRequest], Awaitable[CompleteManyResponse]],
        *,
        held: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._call = call
        self._held = held
        self._sleep = sleep
        self._waiting: deque[_PendingCompletion] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def send(self, session_id: str, completion: Completion) -> None:
        """Send a completion; returns once its task has the result.

        Raises:
            MeshError: CONFLICT where the attempt is not the session's any more, INVALID where the result will never be
                taken, any other where it is not decided.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_PendingCompletion(session_id, completion, ended))
        if self._sender is None or self._sender.done():
            # In a context of its own: the call belongs to no single attempt, so it must not bear the trace of one.
            self._sender = asyncio.get_running_loop().create_task(
                self._send_all(), name="completions", context=contextvars.Context()
            )
        await ended

    async def close(self) -> None:
        """Give up what is on its way; whoever waits for it is cancelled."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        while self._waiting:
            self._waiting.popleft().ended.cancel()

    async def _send_all(self) -> None:
        while self._waiting:
            if self._held() > len(self._waiting):
                await self._sleep(_GATHER_SECONDS)
            members = self._gather()
            try:
                await self._send_group(members)
            except Exception as error:  # nobody else would tell those who wait
                for member in members:
                    _refuse(member, error)
            except asyncio.CancelledError:
                for member in members:
                    member.ended.cancel()
                raise

    def _gather(self) -> list[_PendingCompletion]:
        """Return the next members of one session, in the order they came."""
        session_id, size = self._waiting[0].session_id, 0
        members: list[_PendingCompletion] = []
        while self._waiting and self._waiting[0].session_id == session_id and len(members) < _MAX_MEMBERS:
            size += self._waiting[0].completion.ByteSize()
            if members and size > _MAX_BYTES:
                break
            members.append(self._waiting.popleft())
        return members

    async def _send_group(self, members: list[_PendingCompletion]) -> None:
        request = CompleteManyRequest(
            session_id=members[0].session_id, completions=[member.completion for member in members]
        )
        try:
            outcomes = (await self._call(request)).outcomes
        except MeshError as error:
            if error.kind is ErrorKind.INVALID and len(members) > 1:
                # The contract judges a request as a whole: each shows by itself whether it is the one.
                for member in members:
                    await self._send_group([member])
                return
            for member in members:
                _refuse(member, error)
            return
        for member, outcome in zip(members, outcomes, strict=True):
            _settle(member, outcome)


def _settle(member: _PendingCompletion, outcome: CompletionOutcome) -> None:
    if outcome.verdict == COMPLETION_VERDICT_TAKEN:
        if not member.ended.done():
            member.ended.set_result(None)
    elif outcome.verdict == COMPLETION_VERDICT_LOST:
        _refuse(member, conflict(outcome.message, reason="LEASE_LOST"))
    elif outcome.verdict == COMPLETION_VERDICT_REFUSED:
        _refuse(member, MeshError(ErrorKind.INVALID, outcome.message))
    else:
        _refuse(member, unavailable(outcome.message or "The completion was not decided."))


def _refuse(member: _PendingCompletion, error: Exception) -> None:
    if not member.ended.done():
        member.ended.set_exception(error)
