"""The port of the scaler: plain, or by mutual TLS; no reflection, no token."""

from __future__ import annotations

import grpc
from atelier.keda.externalscaler_pb2_grpc import add_ExternalScalerServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshkit.certificates import MeshCertificate
from meshkit.server import listen_on, server_options
from services.monitoring.scaler.service import ScalerDesk
from services.monitoring.scaler.servicer import ScalerServicer

_MAX_BYTES = 64 * 1024
# One stream and some calls for each trigger.
_MAX_CALLS = 1024


class ScalerServer:
    """Serves the scaler.

    Args:
        desk: The use cases.
        listen: `host:port`; port 0 lets the system choose.
        certificate: What it shows, and asks clients for; plain text where absent.
        grace_seconds: How long calls in flight may take at the end.
    """

    def __init__(
        self,
        desk: ScalerDesk,
        listen: str,
        *,
        certificate: MeshCertificate | None = None,
        grace_seconds: float = 5.0,
    ) -> None:
        self._desk = desk
        self._listen = listen
        self._grace = grace_seconds
        self._certificate = certificate
        self._server = grpc.aio.server(
            options=server_options(_MAX_BYTES, _MAX_BYTES), maximum_concurrent_rpcs=_MAX_CALLS
        )
        add_ExternalScalerServicer_to_server(ScalerServicer(desk), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = 0

    async def start(self) -> int:
        """Start to serve.

        Returns:
            The port in use.

        Raises:
            MeshError: `UNAVAILABLE` where the address is taken.
        """
        self.port = listen_on(self._server, self._listen, self._certificate)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def stop(self) -> None:
        """End the streams in good order, let calls in flight end, and close."""
        await self._health.enter_graceful_shutdown()
        self._desk.stop()
        await self._server.stop(self._grace)
