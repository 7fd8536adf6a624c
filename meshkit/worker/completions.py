"""Completions on their way to the service: those that are ready together travel in one RPC.

One that is alone goes at once. Where the worker holds other attempts, a completion lingers for their
completions. Completions that become ready during a call wait for the next call. A call and its commit cost the service
nearly as much for one completion as for ten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

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
from meshkit.lingers import COMPLETION_LINGER
from meshkit.microbatch import GroupCall

_MAX_MEMBERS = 256  # bound of CompleteManyRequest.completions
_MAX_BYTES = 1 << 20  # small results share a call; a large one does not hold up others

_Member = tuple[str, Completion]  # with its session


class Completions:
    """Sends completions, in groups of one session.

    Args:
        call: Makes the RPC.
        held: How many attempts the worker holds, those that wait here among them.
        linger: How long a completion waits for those of the other attempts.
    """

    def __init__(
        self,
        call: Callable[[CompleteManyRequest], Awaitable[CompleteManyResponse]],
        *,
        held: Callable[[], int],
        linger: float = COMPLETION_LINGER,
    ) -> None:
        self._call = call
        self._groups: GroupCall[_Member, None] = GroupCall(
            self._complete,
            name="completions",
            linger=linger,
            max_items=_MAX_MEMBERS,
            max_bytes=_MAX_BYTES,
            more=lambda waiting, _: held() > waiting,
        )

    async def send(self, session_id: str, completion: Completion) -> None:
        """Send a completion; returns once its task has the result.

        Raises:
            MeshError: CONFLICT where the attempt is not the session's any more, INVALID where the result will never be
                taken, any other where it is not decided.
        """
        await self._groups.submit((session_id, completion), key=session_id, size=completion.ByteSize())

    async def close(self) -> None:
        """Stop sending; whoever waits for it is cancelled."""
        await self._groups.close()

    async def _complete(self, members: Sequence[_Member]) -> list[Exception | None]:
        request = CompleteManyRequest(session_id=members[0][0], completions=[completion for _, completion in members])
        try:
            outcomes = (await self._call(request)).outcomes
        except MeshError as error:
            if error.kind is ErrorKind.INVALID and len(members) > 1:
                # The contract judges a request as a whole: sent by itself, each shows whether it is the one.
                return [answer for member in members for answer in await self._complete([member])]
            return [error] * len(members)
        return [_error(outcome) for outcome in outcomes]


def _error(outcome: CompletionOutcome) -> MeshError | None:
    if outcome.verdict == COMPLETION_VERDICT_TAKEN:
        return None
    if outcome.verdict == COMPLETION_VERDICT_LOST:
        return conflict(outcome.message, reason="LEASE_LOST")
    if outcome.verdict == COMPLETION_VERDICT_REFUSED:
        return MeshError(ErrorKind.INVALID, outcome.message)
    return unavailable(outcome.message or "The completion was not decided.")
