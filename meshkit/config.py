"""Settings that every service shares, validated once at start.

Values come from the environment (`ATELIER_NATS_URL`); any of them may come from a file instead, named by the same
variable with `_FILE` (`ATELIER_AUTH_SECRET_FILE`), which is how Kubernetes hands over secrets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from meshkit.freeform import FreeFormLimits

PREFIX = "ATELIER_"
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


# A list as people write it in an environment: `a,b`.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def read_setting(name: str) -> str:
    """Return a setting that has no field of its own, from its variable or its file; empty where neither is set.

    Args:
        name: Its name in lower case, without the prefix.
    """
    return os.environ.get(f"{PREFIX}{name.upper()}") or _from_file(name) or ""


def _from_file(name: str) -> str | None:
    path = os.environ.get(f"{PREFIX}{name.upper()}_FILE")
    return Path(path).read_text(encoding="utf-8").rstrip("\r\n") if path else None


class FileSource(PydanticBaseSettingsSource):
    """Reads a setting from the file that its variable with `_FILE` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 -- the library's signature
        """Return the file's text without its line end, or None where no file is named."""
        return _from_file(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all settings that have a file."""
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class MeshSettings(BaseSettings):
    """Settings of every service. Each service's `config.py` adds its own fields to a subclass."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        # A value that is refused may be a secret, and the error goes into the log.
        hide_input_in_errors=True,
    )

    listen: str = Field(default="127.0.0.1:0", description="Address to serve on; port 0 lets the system choose.")
    port_file: Path | None = Field(
        default=None, description="The bound address is written here once the service is ready."
    )
    log_level: str = Field(default="info", description="Least level that is written: debug, info, warning or error.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the Prometheus page; no page if unset."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of the Prometheus page.")
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^\s@]+)?$",
        description="Collector that spans go to by OTLP over gRPC: http://host:4317, or https for TLS; none are "
        "recorded if empty.",
    )
    trace_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Part of the traces that begin at a service and are recorded; a caller's own `traceparent` decides "
        "for its requests.",
    )
    health_listen: str = Field(
        default="",
        description="Address that answers gRPC health checks in plain text, and nothing else, for probes that speak no "
        "TLS; none if empty.",
    )

    tls_certificate: Path | None = Field(
        default=None,
        description="File of the certificate (PEM) that this process shows and presents to others of the mesh by gRPC; "
        "plain text where it has none.",
    )
    tls_key: Path | None = Field(default=None, description="File of the key of that certificate, without a passphrase.")
    tls_authority: Path | None = Field(
        default=None,
        description="File of the authorities (PEM) that certificates of the mesh are from, both of callers and of "
        "services.",
    )
    tls_server_name: str = Field(
        default="",
        description="Name that certificates of called services must bear in place of the host of their address, for "
        "addresses that are lists.",
    )

    shutdown_grace_seconds: float = Field(
        default=20.0, ge=0, description="How long calls in flight may take at a stop."
    )
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, description="Largest gRPC message, either way.")
    max_request_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        description="Largest request that a service takes by gRPC; larger files travel as objects.",
    )

    max_free_form_bytes: int = Field(
        default=256 * 1024,
        ge=1024,
        description="Most bytes of one free-form member of a request, such as `config`, as its message is encoded.",
    )
    max_free_form_elements: int = Field(
        default=10_000, ge=1, description="Most members and items of one free-form member, nested ones included."
    )

    max_concurrent_calls: int = Field(
        default=2000,
        ge=2,
        description="Calls that are served at once, parked polls included; at most half of them are streams.",
    )

    image_checks: int = Field(
        default=2,
        ge=2,
        description="Images decoded at a time, each in a process of its own; one place takes small ones alone.",
    )
    image_memory_bytes: int = Field(
        default=2560 * 1024 * 1024,
        ge=128 * 1024 * 1024,
        description="Memory that the decoding of large images may take together; one that needs more is refused.",
    )
    max_image_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Largest image file that is decoded; the same for every service and worker of a mesh.",
    )
    image_seconds: float = Field(default=30.0, gt=0, description="How long one image may take to decode.")
    image_wait_seconds: float = Field(default=30.0, gt=0, description="How long an image waits for its turn.")

    tenant_max_calls: int = Field(
        default=1000, ge=1, description="Calls of one tenant that a process serves at once, streams included."
    )
    tenant_max_streams: int = Field(
        default=200, ge=1, description="Streams of one tenant that a process serves at once."
    )
    tenant_requests_per_second: int = Field(
        default=5000, ge=1, description="Requests of one tenant a second that a gateway answers; 429 beyond."
    )
    tenant_waiting_tasks: int = Field(
        default=250_000, ge=1, description="Tasks of one tenant that may wait; creates beyond are a 429."
    )
    tenant_storage_bytes: int = Field(
        default=1 << 40,
        ge=0,
        description="Bytes that one tenant may store; uploads and creates beyond are a 429; 0 for any number.",
    )
    reflection_open: bool = Field(
        default=False, description="Whether gRPC reflection tells the contracts without a token."
    )

    database_url: SecretStr = Field(
        default=SecretStr(""), description="PostgreSQL: postgresql://user:password@host:port/name"
    )
    database_min_connections: int = Field(default=1, ge=0, description="Connections that are kept open.")
    database_max_connections: int = Field(
        default=10, ge=2, description="Most connections; hot transactions and other queries share them."
    )
    database_statement_timeout_seconds: float = Field(
        default=30.0, ge=0, description="Longest statement; 0 for no limit."
    )

    nats_url: SecretStr = Field(
        default=SecretStr(""), description="NATS: nats://user:password@host:port; without it the service polls."
    )
    nats_replicas: int | None = Field(
        default=None,
        ge=1,
        le=5,
        description="Copies of the stream of events that a NATS cluster keeps: 3 on three servers or more. Set it "
        "alike wherever it is set. A process without it makes a missing stream with one copy, and leaves the copies of "
        "one that is there as they are.",
    )

    s3_endpoint: str = Field(default="", description="host:port of the object store.")
    s3_access_key: str = Field(default="", description="Access key of the object store.")
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="Secret key of the object store.")
    s3_bucket: str = Field(default="atelier", min_length=3, max_length=63, description="Bucket; it must exist.")
    s3_secure: bool = Field(default=False, description="Whether to use TLS.")
    s3_region: str = Field(default="us-east-1", description="Region that requests are signed for.")

    auth_secret: SecretStr | None = Field(
        default=None, description="Key of HS256 tokens; services sign their own tokens with it."
    )
    auth_jwks_url: str | None = Field(default=None, description="Keys of RS256, ES256 and EdDSA tokens, by http(s).")
    auth_jwks_file: Path | None = Field(
        default=None, description="The same keys from a file, read again when it changes."
    )
    auth_issuer: str | None = Field(default=None, description="`iss` that tokens must have, if set.")
    auth_audience: str | None = Field(default=None, description="`aud` that tokens must have, if set.")
    auth_revoked_file: Path | None = Field(
        default=None, description="Revoked `jti`s, one per line, read again when the file changes."
    )

    public_url: str = Field(
        default="",
        description="Public address of the gateway, which signed media URLs begin with. If empty, lists of stored "
        "images have the address of the request, and tasks and webhooks have no media URLs.",
    )
    media_url_ttl_seconds: int = Field(
        default=3600, ge=1, le=604800, description="How long a signed media URL is valid."
    )
    media_secret: SecretStr | None = Field(
        default=None, description="Key of signed media URLs; derived from the mesh's auth secret if unset."
    )

    fetch_allow_private: CommaSeparated = Field(
        default=(),
        description="host:port or CIDR that the fetcher may reach although it is private, separated by commas.",
    )

    @field_validator("auth_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @model_validator(mode="after")
    def _whole_certificate(self) -> Self:
        names = ("tls_certificate", "tls_key", "tls_authority")
        missing = [name for name in names if getattr(self, name) is None]
        if missing and len(missing) < len(names):
            variables = " and ".join(f"{PREFIX}{name.upper()}" for name in missing)
            raise ValueError(f"a certificate takes three settings: {variables} must be set too")
        return self

    @property
    def answer_bytes(self) -> int:
        """Bytes of rows that one answer holds: messages, and the JSON made of them, repeat some of them."""
        return min(16 * 1024 * 1024, self.max_message_bytes // 4)

    @property
    def free_form_limits(self) -> FreeFormLimits:
        """What a free-form member of a request may hold."""
        return FreeFormLimits(self.max_free_form_bytes, self.max_free_form_elements)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- settings come from no dotenv file
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over files."""
        return init_settings, env_settings, FileSource(settings_cls)
