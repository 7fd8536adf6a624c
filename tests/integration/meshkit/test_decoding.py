"""Bytes that are no message of the method's type."""

from typing import Any

import grpc
import pytest

from meshkit.auth import TokenIssuer
from tests.integration.meshkit.serving import SECRET, SERVICE, Mesh

NO_MESSAGE = b"\xff" * 12


@pytest.mark.parametrize(
    "path", [f"/{SERVICE}/GetTask", f"/{SERVICE}/WatchTask", "/atelier.mesh.v1.BundleService/Carry"]
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_request_that_cannot_be_read_is_refused_in_our_words_once_its_caller_is_known(
    mesh: Mesh, path: str, known: bool
) -> None:
    token = TokenIssuer(SECRET).issue("alice", "acme", ("read", "write"), 60)
    metadata = (("authorization", f"Bearer {token}"),) if known else ()
    async with grpc.aio.insecure_channel(mesh.server.address) as channel:
        make: Any = channel.unary_unary if path.endswith("GetTask") else channel.unary_stream
        call = make(path)(NO_MESSAGE, metadata=metadata)
        code = await call.code()
        text = await call.details()
    assert code is (grpc.StatusCode.INVALID_ARGUMENT if known else grpc.StatusCode.UNAUTHENTICATED)
    assert "protobuf" not in (text or "")
    assert mesh.servicer.calls == []
