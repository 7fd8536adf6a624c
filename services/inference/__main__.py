"""Runs the inference worker: `python -m services.inference`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from meshkit import lifecycle
from meshkit.logging import get_logger
from services.inference.composition import start
from services.inference.config import InferenceSettings

_log = get_logger(__name__)


async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Start the worker and wait for its end."""
    settings = InferenceSettings()
    running = await start(settings, stack)
    lifecycle.announce(running.address, settings.port_file)
    _log.info("ready", address=running.address)
    await stop.wait()


if __name__ == "__main__":
    lifecycle.run(main, service="inference")
