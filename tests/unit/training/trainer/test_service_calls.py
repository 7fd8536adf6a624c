import asyncio
from typing import Any, cast

import pytest
from atelier.training.v1.trainer_service_pb2 import NoteStateRequest, NoteStateResponse

from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError, conflict, not_found, unavailable
from meshkit.worker.pacing import Pauses
from services.training.trainer.service_calls import AttemptLost, TrainerCalls
from tests.unit.training.trainer.fakes import no_pause


class Channel:
    """Answers calls of `NoteState` one after the other."""

    def __init__(self, *answers: MeshError | None) -> None:
        self.answers = list(answers)

    def stub(self, _kind: Any) -> Any:
        return self

    async def NoteState(
        self,
        request: NoteStateRequest,
        timeout: float | None = None,  # noqa: ASYNC109 -- gRPC's
    ) -> NoteStateResponse:
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return NoteStateResponse()


async def told(*answers: MeshError | None) -> int:
    channel = Channel(*answers)
    await TrainerCalls(cast("MeshChannel", channel), Pauses(sleep=no_pause)).state(NoteStateRequest())
    return len(channel.answers)


async def test_a_service_that_is_away_is_told_again() -> None:
    assert await told(unavailable("away"), MeshError(ErrorKind.DEADLINE, "late"), None) == 0


@pytest.mark.parametrize("refusal", [conflict("an older attempt", reason="ATTEMPT_LOST"), not_found("training", "7")])
async def test_an_attempt_that_is_refused_is_lost(refusal: MeshError) -> None:
    with pytest.raises(AttemptLost):
        await told(refusal)


async def test_what_the_service_does_not_take_is_not_repeated() -> None:
    with pytest.raises(MeshError, match="bad"):
        await told(MeshError(ErrorKind.INVALID, "bad"), None)
