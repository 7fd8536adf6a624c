"""Settings of providers: credentials, addresses, models and limits, by `ATELIER_*` variables.

A credential may lie in a file that the variable with `_FILE` at its end names. A provider without its credential is not
served.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_STANDARD, PROVIDER_TYPE_LOCAL, PROVIDER_TYPE_VERTEX
from pydantic import AfterValidator, Field, SecretStr, field_validator

from meshkit.catalog import provider_numbered
from meshkit.config import CommaSeparated, MeshSettings
from meshkit.worker.config import WorkerSettings
from services.inference.providers.http import ExchangeLimits, origin_of


def _address(value: str) -> str:
    if origin_of(value) is None:
        raise ValueError("must be http:// or https:// with a host, and without credentials")
    return value.rstrip("/")


ProviderAddress = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda value: value and _address(value))]
FalApp = Annotated[
    str, Field(max_length=256, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$")
]

_EDITORS = tuple(
    provider_numbered(number).name for number in (PROVIDER_TYPE_LOCAL, PROVIDER_TYPE_VERTEX, PROVIDER_TYPE_FAL_STANDARD)
)


def _editor(value: str) -> str:
    name = value.strip().upper()
    if name not in _EDITORS:
        raise ValueError(f"must be one of {', '.join(_EDITORS)}")
    return name


UltimateEditor = Annotated[str, AfterValidator(_editor)]

_NO_KEY = SecretStr("")


class ModelSettings(MeshSettings):
    """The settings of whoever calls language models: accounts, addresses, and what an exchange may take."""

    provider_connect_seconds: float = Field(
        default=10.0, gt=0, description="How long a connection to a provider may take."
    )
    provider_request_seconds: float = Field(
        default=120.0, gt=0, description="How long one exchange with a provider may take, its answer included."
    )
    provider_answer_bytes: int = Field(
        default=64 << 20, ge=1024, description="Largest answer of a provider's interface."
    )

    gemini_key: SecretStr = Field(default=_NO_KEY, description="Key of the Gemini API.")
    gemini_url: ProviderAddress = Field(
        default="https://generativelanguage.googleapis.com", description="Address of the Gemini API."
    )
    gemini_text_model: str = Field(
        default="gemini-2.5-flash", min_length=1, description="Model of Gemini that answers where a task names none."
    )

    vertex_project: str = Field(
        default="", description="Project of Google Cloud: Gemini is called over Vertex, not by its key."
    )
    vertex_location: str = Field(default="global", min_length=1, description="Location at Vertex.")
    vertex_credentials_file: Path | None = Field(
        default=None,
        description="Key file of a service account at Google Cloud; the machine's own credentials if empty.",
    )
    vertex_url: OptionalAddress = Field(default="", description="Address of Vertex; that of the location if empty.")

    openai_key: SecretStr = Field(default=_NO_KEY, description="Key of OpenAI, or of a server of its protocol.")
    openai_url: ProviderAddress = Field(default="https://api.openai.com/v1", description="Address of OpenAI.")
    openai_fixed_temperature: CommaSeparated = Field(
        default=("o[1-9]*", "gpt-[5-9]*", "gpt-[1-9][0-9]*"),
        description="Models of OpenAI that take no temperature, as patterns.",
    )

    anthropic_key: SecretStr = Field(default=_NO_KEY, description="Key of Anthropic.")
    anthropic_url: ProviderAddress = Field(default="https://api.anthropic.com", description="Address of Anthropic.")
    anthropic_temperature: CommaSeparated = Field(
        default=("claude-[23]*", "claude-*-4-[0156]*", "claude-*-4-2025*"),
        description="Models of Anthropic that take a temperature, as patterns; those from 4.7 on refuse it.",
    )
    anthropic_max_tokens: int = Field(
        default=4096, ge=1, description="Tokens that Anthropic may write at most where a task does not say."
    )

    ollama_key: SecretStr = Field(default=_NO_KEY, description="Key of Ollama, where it stands behind one.")
    ollama_url: ProviderAddress = Field(default="http://127.0.0.1:11434", description="Address of Ollama.")

    @property
    def provider_http(self) -> ExchangeLimits:
        """What one exchange with a provider may take."""
        return ExchangeLimits(self.provider_connect_seconds, self.provider_request_seconds, self.provider_answer_bytes)


class ProviderSettings(WorkerSettings, ModelSettings):
    """The settings of a worker that calls providers."""

    provider_wait_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long a provider may take for a request, from when it was sent; 0 for what the task type may.",
    )
    provider_poll_seconds: float = Field(
        default=5.0, gt=0, le=60, description="Longest pause between two looks at a request that a provider has queued."
    )
    provider_result_bytes: int = Field(default=256 << 20, ge=1024, description="Largest file that a provider made.")
    provider_result_seconds: float = Field(
        default=120.0, gt=0, description="How long the fetching of one such file may take."
    )

    fal_key: SecretStr = Field(default=_NO_KEY, description="Key of fal.")
    fal_url: ProviderAddress = Field(default="https://queue.fal.run", description="Address of fal's queue.")
    fal_rest_url: ProviderAddress = Field(default="https://rest.fal.ai", description="Address of fal's storage.")
    fal_upload_bytes: int = Field(
        default=4_000_000,
        ge=1000,
        description="An input of fal whose data URL has more bytes is uploaded to fal's storage, and its address sent.",
    )
    fal_refiner_app: FalApp = Field(
        default="fal-ai/clarity-upscaler", description="Application of FAL_SHOOTIFY_REFINER where a task names none."
    )
    fal_garment_app: FalApp = Field(
        default="fal-ai/flux-pro/kontext/multi", description="Application of FAL_GARMENT_FIXER."
    )
    fal_webhook_url: OptionalAddress = Field(
        default="",
        description="Public address that leads to the worker's door for fal's webhooks; unset, fal is only asked.",
    )
    fal_webhook_listen: str = Field(
        default="127.0.0.1:8093", description="Address of the door, which is there where its public address is set."
    )
    fal_keys_url: ProviderAddress = Field(
        default="https://rest.fal.ai/.well-known/jwks.json", description="Keys that fal signs its webhooks by."
    )
    fal_clip_seconds: CommaSeparated = Field(
        default=("5", "10"), description="Lengths of the clips that applications of fal make, in whole seconds."
    )

    fashn_key: SecretStr = Field(default=_NO_KEY, description="Key of FASHN.")
    fashn_url: ProviderAddress = Field(default="https://api.fashn.ai", description="Address of FASHN.")
    fashn_model: str = Field(default="tryon-v1.6", min_length=1, description="Model of FASHN that dresses people.")

    freepik_key: SecretStr = Field(default=_NO_KEY, description="Key of Freepik.")
    freepik_url: ProviderAddress = Field(default="https://api.freepik.com", description="Address of Freepik.")
    freepik_precision_version: Literal["1", "2"] = Field(
        default="1", description="Version of Freepik's precise upscaler: 1 takes no factor, 2 takes one and a flavor."
    )
    freepik_precision_flavor: Literal["sublime", "photo", "photo_denoiser"] = Field(
        default="photo", description="What version 2 of it is tuned for."
    )

    gemini_image_model: str = Field(
        default="gemini-3-pro-image", min_length=1, description="Model of Gemini that makes and edits pictures."
    )

    @field_validator("fal_clip_seconds")
    @classmethod
    def _lengths(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not values or not all(value.isascii() and value.isdigit() and int(value) > 0 for value in values):
            raise ValueError("name at least one length, in whole seconds")
        return values

    @property
    def fal_clip_lengths(self) -> tuple[int, ...]:
        """Lengths of fal's clips in seconds, ascending."""
        return tuple(sorted({int(value) for value in self.fal_clip_seconds}))

    ultimate_editor: UltimateEditor = Field(
        default=_EDITORS[0],
        description="Who redraws parts for the SARTIQ_ULTIMATE pipelines: LOCAL (the device), VERTEX or FAL_STANDARD.",
    )
    ultimate_fal_app: FalApp = Field(
        default="fal-ai/flux-pro/kontext/multi", description="Application of fal that redraws them."
    )
