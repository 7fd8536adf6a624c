"""The port of the scaler: plain, or by mutual TLS; no reflection, no token."""

from __future__ import annotations

from pathlib import Path

import grpc
from atelier.keda.externalscaler_pb2_grpc import add_ExternalScalerServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.server import server_options
from services.monitoring.scaler.service import ScalerDesk
from services.monitoring.scaler.servicer import ScalerServicer

_log = get_logger(__name__)

_MAX_BYTES = 64 * 1024
# One stream and some calls for each trigger.
_MAX_CALLS = 1024


class ScalerServer:
    """Serves the scaler.

    Args:
        desk: The use cases.
        listen: `host:port`; port 0 lets the system choose.
        certificate: File of the server's certificate; plain text where absent.
        key: File of its key.
        client_authority: File of the authority that signs clients' certificates.
        grace_seconds: How long calls in flight may take at the end.
    """

    def __init__(
        self,
        desk: ScalerDesk,
        listen: str,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        client_authority: Path | None = None,
        grace_seconds: float = 5.0,
    ) -> None:
        self._desk = desk
        self._listen = listen
        self._grace = grace_seconds
        self._credentials = (
            None
            if certificate is None or key is None or client_authority is None
            else _credentials(certificate, key, client_authority)
        )
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
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self._listen)
            else:
                self.port = self._server.add_secure_port(self._listen, self._credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise MeshError(ErrorKind.UNAVAILABLE, f"Cannot listen on {self._listen}", reason="ADDRESS_IN_USE")
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def stop(self) -> None:
        """End the streams in good order, let calls in flight end, and close."""
        await self._health.enter_graceful_shutdown()
        self._desk.stop()
        await self._server.stop(self._grace)


def _credentials(certificate: Path, key: Path, client_authority: Path) -> grpc.ServerCredentials:
    """Return credentials that ask clients for a certificate; files that are renewed are read anew."""

    def read() -> tuple[bytes, bytes, bytes]:
        return key.read_bytes(), certificate.read_bytes(), client_authority.read_bytes()

    def configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([files[:2]], root_certificates=files[2])

    first = configuration(read())
    latest = [first]

    def renewed() -> grpc.ServerCertificateConfiguration:
        try:
            latest[0] = configuration(read())
        except OSError:
            _log.warning("scaler_certificate_not_read")  # in the middle of being renewed
        return latest[0]

    return grpc.dynamic_ssl_server_credentials(first, renewed, require_client_authentication=True)
