"""Keeps what NATS handed to this process from others, for as long as the process goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from nats import errors as nats_errors
from nats.aio.msg import Msg
from nats.js import errors as js_errors

from meshkit.loops import cancel


@asynccontextmanager
async def kept(messages: Sequence[Msg], wait_seconds: float) -> AsyncIterator[None]:
    """Extend the hold on messages until the block ends; those that were acknowledged are left.

    Args:
        messages: What is being handled.
        wait_seconds: How long NATS waits for an acknowledgement, or for the word that it is worked upon.
    """

    async def extend() -> None:
        while True:
            await asyncio.sleep(wait_seconds / 3)
            for message in messages:
                if not message.is_acked:
                    with suppress(nats_errors.Error, js_errors.Error, OSError):  # it comes again
                        await message.in_progress()

    extending = asyncio.create_task(extend())
    try:
        yield
    finally:
        await cancel([extending])
