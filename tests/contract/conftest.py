"""The gateway as it is composed for production, asked for its document and, without a token, for every path."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from meshkit import topology
from services.gateway.composition import build_app
from services.gateway.config import GatewaySettings
from tests.contract.openapi_reading import Document
from tests.contract.test_documented_surface import ENDPOINTS

NOWHERE = "127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway said.

    Attributes:
        document: Its OpenAPI document.
        statuses: Status that each documented endpoint answered without a token, by method and path.
    """

    document: dict[str, Any]
    statuses: Mapping[tuple[str, str], int]


async def _ask() -> Gateway:
    settings = GatewaySettings(
        auth_secret=SecretStr("a key that no mesh has, for contract tests"),
        addresses={spec.role: NOWHERE for spec in topology.routable()},
        s3_endpoint=NOWHERE,
        s3_access_key="none",
        s3_secret_key=SecretStr("none"),
    )
    async with AsyncExitStack() as stack:
        app = build_app(settings, stack, asyncio.Event())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://gateway"))
        document = (await client.get("/openapi.json")).json()
        statuses = {}
        for method, path in ENDPOINTS:
            asked = path.format(**dict.fromkeys(("task_id", "workflow_id", "path"), "x"))
            statuses[method, path] = (await client.request(method, asked)).status_code
    return Gateway(document, statuses)


@pytest.fixture(scope="session")
def gateway() -> Gateway:
    return asyncio.run(_ask())


@pytest.fixture(scope="session")
def document(gateway: Gateway) -> Document:
    return Document(gateway.document)
