"""EchoService over gRPC."""

from __future__ import annotations

from typing import Any

from echo.v1 import echo_service_pb2, echo_service_pb2_grpc  # type: ignore[import-not-found]  # compiled by the test

from meshkit.access import Caller
from meshkit.errors import invalid


class EchoServicer(echo_service_pb2_grpc.EchoServiceServicer):  # type: ignore[misc]  # as above
    """Answers callers."""

    def __init__(self, most_times: int) -> None:
        self._most = most_times

    async def Echo(self, request: Any, context: Any) -> Any:
        """Say a text again."""
        del context
        if request.times > self._most:
            raise invalid("times", f"must be at most {self._most}", "less_than_equal")
        return echo_service_pb2.EchoResponse(
            text=request.text * request.times, tenant=Caller.of_call().require_tenant()
        )
