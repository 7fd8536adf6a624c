"""Runs the tasks service: `python -m services.tasks`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from meshkit import lifecycle
from meshkit.logging import get_logger
from services.tasks.composition import start
from services.tasks.config import TasksSettings

_log = get_logger(__name__)


async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Start the service and waits for its end."""
    settings = TasksSettings()
    running = await start(settings, stack)
    lifecycle.announce(running.address, settings.port_file)
    _log.info("ready", address=running.address)
    await stop.wait()


if __name__ == "__main__":
    lifecycle.run(main, service="tasks")
