"""Settings of the gateway."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from meshkit import topology
from meshkit.config import CommaSeparated, MeshSettings, read_setting
from meshkit.topology import GATEWAY, TASKS

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")


def _named_addresses() -> dict[str, str]:
    named = {spec.role: read_setting(f"{spec.role}_address") for spec in topology.routable()}
    # There is no mesh without its tasks.
    return named | {TASKS.role: named[TASKS.role] or TASKS.address}


class GatewaySettings(MeshSettings):
    """Settings of the gateway, beside those of `MeshSettings`."""

    listen: str = Field(default=GATEWAY.address, description="Address to serve HTTP on; port 0 lets the system choose.")
    addresses: dict[str, str] = Field(
        default_factory=_named_addresses,
        description="Addresses of the services by role, each from its own variable, as `ATELIER_WORKFLOWS_ADDRESS`; "
        "the routes of a service without one are not served.",
    )
    upstreams: dict[str, str] = Field(
        default_factory=dict,
        description='Further services: address by proto package, as JSON: {"atelier.training.v1": "host:port"}.',
    )
    rpc_timeout_seconds: float = Field(default=30.0, gt=0, description="How long a service may take to answer.")

    cdn_url: str = Field(
        default="", description="CDN in front of the bucket; reads of stored images are redirected to it."
    )
    storage_redirect: Literal["none", "presigned"] = Field(
        default="none", description="Whether reads of stored images are redirected to URLs signed for the object store."
    )

    cors_origins: CommaSeparated = Field(
        default=(), description="Origins that browsers may call from, as `https://shop.example`; `*` for any."
    )
    max_connections: int = Field(
        default=8192,
        ge=1,
        description="Most HTTP connections; when full, those at rest are closed for new ones, and where none is, new "
        "ones get a 503.",
    )
    max_connections_per_address: int = Field(
        default=2048,
        ge=0,
        description="Most HTTP connections from one address (IPv6: from one /64 network); 0 for no such bound, as "
        "behind a proxy.",
    )
    max_head_bytes: int = Field(
        default=64 * 1024, ge=1024, description="Largest line and headers of a request; more is a 431."
    )
    head_read_seconds: float = Field(
        default=10.0, gt=0, description="How long a request's line and headers may take to arrive."
    )
    idle_connection_seconds: float = Field(
        default=75.0,
        gt=0,
        description="How long a connection may rest between requests, and its peer take nothing of an answer.",
    )
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, description="Largest request body.")
    max_lora_bytes: int = Field(
        default=500 * 1024 * 1024, ge=1024, description="Largest LoRA file that is taken as an upload."
    )
    lora_timeout_seconds: float = Field(
        default=600.0, gt=0, description="How long the library may take to judge an uploaded LoRA."
    )
    max_body_elements: int = Field(
        default=100_000,
        ge=1,
        description="Most members and items of a JSON body above 64 KiB, objects and arrays counted besides; they are "
        "counted before the body is parsed.",
    )
    max_bodies_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1024,
        description="Bytes of JSON bodies above 64 KiB that are held at once; others wait their turn.",
    )
    body_wait_seconds: float = Field(default=30.0, gt=0, description="How long a large body waits for its turn.")
    body_read_seconds: float = Field(
        default=120.0, gt=0, description="How long a request's body may take to arrive; then it is a 408."
    )
    upload_threshold_bytes: int = Field(
        default=256 * 1024, ge=1024, description="Files in JSON larger than this go through the object store."
    )
    thumbnail_cache_bytes: int = Field(
        default=32 * 1024 * 1024, ge=0, description="Bytes of thumbnails that are kept in memory."
    )
    gzip_min_bytes: int = Field(default=1024, ge=0, description="Smallest JSON answer that is compressed.")
    live_heartbeat_seconds: float = Field(
        default=30.0, gt=0, description="How often clients that listen to events are told that the connection lives."
    )
    live_idle_seconds: float = Field(
        default=300.0, gt=0, description="How long a WebSocket client may say nothing before it is let go."
    )
    live_status_seconds: float = Field(
        default=5.0, gt=0, description="How often operators who listen are told how the mesh is."
    )
    keep_alive_seconds: float = Field(default=15.0, gt=0, description="Longest silence on an event stream.")

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_send_them(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.rstrip("/").lower() for origin in value)
        if wrong := [origin for origin in origins if origin != "*" and not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"{wrong[0]} is no origin: it should be `*` or scheme://host[:port], without a path")
        return origins

    def packages(self) -> frozenset[str]:
        """Return every proto package of which something is served."""
        named = {package for spec in topology.routable() if self.addresses.get(spec.role) for package in spec.packages}
        return frozenset(named | self.upstreams.keys())

    def address_of(self, service: str) -> str:
        """Return the address of a gRPC service; empty where it is not served.

        Args:
            service: Its full name.
        """
        if upstream := self.upstreams.get(service.rpartition(".")[0]):
            return upstream
        return next((self.addresses.get(spec.role, "") for spec in topology.routable() if service in spec.grpc), "")

    def probed(self) -> dict[str, tuple[str, str]]:
        """Return the services behind the gateway: address, and what health checks ask for, by what `/health` says."""
        found = {
            spec.role: (address, spec.health)
            for spec in topology.routable()
            if (address := self.addresses.get(spec.role)) and not self.upstreams.keys() & set(spec.packages)
        }
        owners = {package: spec for spec in topology.SERVICES for package in spec.packages}
        for package, address in self.upstreams.items():
            owner = owners.get(package)
            found[owner.role if owner else package.split(".")[-2]] = (address, owner.health if owner else "")
        return found
