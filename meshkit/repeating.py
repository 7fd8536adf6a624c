"""Calls that may be carried out twice without harm: they are repeated where a replica was lost or is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from meshkit.errors import ErrorKind, MeshError

_Response = TypeVar("_Response")

ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.1


async def repeated(
    send: Callable[[float], Awaitable[_Response]], deadline_seconds: float, attempts: int = ATTEMPTS
) -> _Response:
    """Make a call, and make it again after a short pause while the service is `UNAVAILABLE`.

    Args:
        send: Makes the call, within the seconds that are left.
        deadline_seconds: How long all of it may take.
        attempts: How often it is made at most.

    Raises:
        MeshError: What became of the last attempt.
    """
    deadline = time.monotonic() + deadline_seconds
    made = 0
    while True:
        try:
            return await send(max(0.0, deadline - time.monotonic()))
        except MeshError as error:
            failure = error
        made += 1
        pause = _FIRST_PAUSE_SECONDS * 2.0 ** (made - 1) * random.uniform(0.5, 1)  # noqa: S311 -- jitter
        if made >= attempts or failure.kind is not ErrorKind.UNAVAILABLE or time.monotonic() + pause >= deadline:
            raise failure
        await asyncio.sleep(pause)
