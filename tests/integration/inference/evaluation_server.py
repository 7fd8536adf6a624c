"""The evaluation role behind a gateway, started for a test."""

import base64
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from meshkit.auth import TokenIssuer
from meshkit.objects import ObjectStore
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.inference.evaluation import composition as evaluation
from services.inference.evaluation.config import EvaluationSettings
from tests.conftest import S3Store

SECRET = "a secret for tests that is long enough"
PHOTO = Path(__file__).parents[2] / "unit" / "modelkit" / "data" / "astronaut.jpg"
PATH = "/api/v1/evaluation/"
TENANT = "acme"


@dataclass
class RunningEvaluation:
    """The gateway before the role, and the store behind both."""

    client: httpx.AsyncClient
    store: ObjectStore

    async def evaluate(self, query: str = "", **members: Any) -> httpx.Response:
        body = {"expected_framing": "upper_body", "expected_view_angle": "front", **members}
        return await self.client.post(f"{PATH}{query}", json=body)

    async def health(self, query: str = "") -> httpx.Response:
        return await self.client.get(f"{PATH}health{query}")


def photo_data() -> str:
    return "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


async def started(stack: AsyncExitStack, s3: S3Store | None = None, **settings: Any) -> RunningEvaluation:
    """Start both; the stack stops them."""
    stored: dict[str, Any] = {}
    if s3 is not None:
        stored = {
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": s3.bucket(),
        }
    shared: dict[str, Any] = {"listen": "127.0.0.1:0", "auth_secret": SECRET, "shutdown_grace_seconds": 1}
    shared["image_wait_seconds"] = 120  # a busy machine takes its time
    role = EvaluationSettings(**shared, **stored, **settings)
    running = await evaluation.start(role, stack)
    front = await gateway.start(GatewaySettings(**shared, **stored, addresses={"evaluation": running.address}), stack)
    token = TokenIssuer(SECRET).issue("ada", TENANT, ("read", "write"), 600)
    client = httpx.AsyncClient(
        base_url=f"http://{front.address}", headers={"authorization": f"Bearer {token}"}, timeout=60
    )
    stack.push_async_callback(client.aclose)
    store = ObjectStore.from_settings(role)
    stack.push_async_callback(store.close)
    return RunningEvaluation(client, store)
