"""Calls that are repeated while their service is away."""

import pytest

from meshkit.errors import ErrorKind, MeshError, unavailable
from meshkit.repeating import ATTEMPTS, repeated


class Service:
    """Answers after some failures."""

    def __init__(self, *failures: MeshError) -> None:
        self.failures = list(failures)
        self.asked: list[float] = []

    async def answer(self, left: float) -> str:
        self.asked.append(left)
        if self.failures:
            raise self.failures.pop(0)
        return "done"


async def test_a_call_is_repeated_within_its_deadline_while_the_service_is_away() -> None:
    service = Service(unavailable("away"), unavailable("away"))
    assert await repeated(service.answer, 30) == "done"
    assert len(service.asked) == 3
    assert 30 >= service.asked[0] > service.asked[1] > service.asked[2]


async def test_it_is_given_up_after_some_attempts() -> None:
    service = Service(*(unavailable("away") for _ in range(9)))
    with pytest.raises(MeshError, match="away"):
        await repeated(service.answer, 30)
    assert len(service.asked) == ATTEMPTS
    with pytest.raises(MeshError, match="away"):
        await repeated(service.answer, 0.01)
    assert len(service.asked) == ATTEMPTS + 1, "no time is left for another"


async def test_what_another_attempt_would_not_mend_is_told_at_once() -> None:
    service = Service(MeshError(ErrorKind.NOT_FOUND, "gone"))
    with pytest.raises(MeshError, match="gone"):
        await repeated(service.answer, 30)
    assert len(service.asked) == 1
