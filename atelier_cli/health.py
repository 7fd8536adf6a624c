"""Health of processes."""

import os
import sys
from pathlib import Path
from typing import Final

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier_cli.environment import given
from meshkit.certificates import SETTINGS, CertificateError, CertificateFiles, dns_name, for_channel, read
from meshkit.health import PROCESS

_TIMEOUT_SECONDS: Final = 2.0


def grpc_serves(address: str, service: str = "", *, plain: bool = False) -> bool:
    """Whether the gRPC server at the address, or one of its services, reports SERVING.

    Args:
        address: `host:port`.
        service: Full name of the service, empty for the process.
        plain: Whether it speaks plain text although the environment names a certificate.
    """
    try:
        channel = grpc.insecure_channel(address) if plain else _channel(address)
    except CertificateError:
        return False
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_TIMEOUT_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str) -> grpc.Channel:
    """Return a channel to a process of this machine, with the certificate of the environment where it names one."""
    certificate, key, authority = (given(name) for name in SETTINGS)
    if not (certificate and key and authority):
        return grpc.insecure_channel(address)
    text = read(CertificateFiles(Path(certificate), Path(key), Path(authority)))
    # The other side has the same certificate: the name in it counts, not the address of this machine.
    options = [("grpc.ssl_target_name_override", dns_name(text.certificate))]
    return grpc.secure_channel(address, for_channel(text), options=options)


def reported_grpc_serves(file: Path, service: str = "") -> bool:
    """Return the same for a server that wrote its address into a file, when it is ready."""
    try:
        address = file.read_text().strip()
    except FileNotFoundError:
        return False
    return bool(address) and grpc_serves(address, service)


def http_serves(url: str) -> bool:
    """Whether a GET there is answered with 200."""
    try:
        return httpx.get(url, timeout=_TIMEOUT_SECONDS).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def main(protocol: str = "grpc") -> int:
    """Ask the process of this container whether it serves: `python -m atelier_cli.health [http]`.

    Args:
        protocol: What it speaks; the gateway speaks `http`.

    Returns:
        The exit status: 0 if it does.
    """
    own = _local(os.environ.get("ATELIER_LISTEN", ""))
    if protocol == "http":
        return 0 if http_serves(f"http://{own}/health/live") else 1
    if asked := os.environ.get("ATELIER_HEALTH_LISTEN"):
        return 0 if grpc_serves(_local(asked), PROCESS, plain=True) else 1
    return 0 if grpc_serves(own, PROCESS) else 1


def _local(listen: str) -> str:
    return f"127.0.0.1:{listen.rpartition(':')[2]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
