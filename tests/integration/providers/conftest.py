"""What tests of providers share: the child that decodes pictures, and fal's server and handlers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.images.checks import ImageChecks
from meshkit.worker.handlers import CallHandler
from services.inference.providers import fal_standard
from services.inference.providers.config import ProviderSettings
from services.inference.providers.kit import ProviderKit
from tests.providers.fal import FalServer

Handlers = Mapping[TaskType.ValueType, CallHandler]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checks() -> AsyncIterator[ImageChecks]:
    """One child that decodes for a whole module: its start takes longer than most tests."""
    running = ImageChecks()
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fal() -> AsyncIterator[FalServer]:
    async with FalServer() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fal_kit(fal: FalServer, checks: ImageChecks) -> AsyncIterator[ProviderKit]:
    async with AsyncExitStack() as stack:
        settings = ProviderSettings(
            fal_key="fal-tests",
            fal_url=fal.url,
            fal_rest_url=fal.url,
            fetch_allow_private=(fal.host,),
            provider_poll_seconds=0.02,
            provider_request_seconds=5.0,
            provider_result_seconds=20.0,
            provider_wait_seconds=15.0,
        )
        yield ProviderKit.from_settings(settings, checks, stack)


@pytest.fixture
def fal_handlers(fal_kit: ProviderKit) -> Handlers:
    return fal_standard.handlers(fal_kit)
