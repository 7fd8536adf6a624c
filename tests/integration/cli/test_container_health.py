"""What the health check of a container asks."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from atelier_cli.embedded.process import free_ports
from atelier_cli.health import main
from meshkit.auth import TokenVerifier
from meshkit.config import MeshSettings
from meshkit.health import HealthPart, PartStates
from meshkit.server import MeshServer


async def _away() -> None:
    raise ConnectionError


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Where a service listens whose database is away."""
    settings = MeshSettings(auth_secret="s" * 32)
    verifier, parts = TokenVerifier.from_settings(settings), PartStates([HealthPart("postgresql", _away)])
    server = MeshServer(settings, listen="127.0.0.1:0", servicers=[], verifier=verifier, parts=parts)
    yield await server.start()
    await server.stop(0)


async def test_a_process_that_serves_is_well_whatever_it_stands_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_LISTEN", f"0.0.0.0:{port}")
    assert await asyncio.to_thread(main) == 0
    assert await asyncio.to_thread(main, "http") == 1, "it speaks no HTTP"


def test_a_process_that_does_not_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_LISTEN", f"0.0.0.0:{free_ports(1)[0]}")
    assert main() == 1
