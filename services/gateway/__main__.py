"""Runs the gateway: `python -m services.gateway`."""

from __future__ import annotations

from meshkit import lifecycle
from services.gateway.composition import start
from services.gateway.config import GatewaySettings

if __name__ == "__main__":
    lifecycle.run_service("gateway", GatewaySettings, start)
