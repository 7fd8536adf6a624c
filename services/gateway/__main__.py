"""`python -m services.gateway`: wires the gateway and serves it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from meshkit.lifecycle import run
from services.gateway.config import GatewaySettings
from services.gateway.server import start


async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    await start(stack, GatewaySettings(), stop)
    await stop.wait()


if __name__ == "__main__":
    run(main, service="gateway")
