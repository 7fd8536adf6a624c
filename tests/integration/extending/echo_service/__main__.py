"""Runs the echo service: `python -m echo_service`."""

from __future__ import annotations

from meshkit import lifecycle

from .composition import start
from .config import EchoSettings

if __name__ == "__main__":
    lifecycle.run_service("echo", EchoSettings, start)
