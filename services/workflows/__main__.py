"""Runs the workflows service: `python -m services.workflows`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from meshkit import lifecycle
from meshkit.logging import get_logger
from services.workflows.composition import start
from services.workflows.config import WorkflowsSettings

_log = get_logger(__name__)


async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Start the service and waits for its end."""
    settings = WorkflowsSettings()
    running = await start(settings, stack)
    lifecycle.announce(running.address, settings.port_file)
    _log.info("ready", address=running.address)
    await stop.wait()


if __name__ == "__main__":
    lifecycle.run(main, service="workflows")
