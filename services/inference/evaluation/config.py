"""Settings of the evaluation role, by `ATELIER_*` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_AI_CORE, PROVIDER_TYPE_LOCAL, PROVIDER_TYPE_VERTEX
from pydantic import Field, field_validator, model_validator

from meshkit.catalog import provider_numbered
from meshkit.config import CommaSeparated
from services.inference.providers.config import ModelSettings

LOCAL, AI_CORE, VERTEX = (
    provider_numbered(number).name for number in (PROVIDER_TYPE_LOCAL, PROVIDER_TYPE_AI_CORE, PROVIDER_TYPE_VERTEX)
)


class EvaluationSettings(ModelSettings):
    """The evaluation role's settings."""

    evaluation_providers: CommaSeparated = Field(
        default=(LOCAL,),
        description="Who evaluates: LOCAL (networks of its own), AI_CORE, VERTEX; the first where a caller names none.",
    )
    evaluation_ai_provider: Literal["openai", "anthropic", "gemini", "ollama"] = Field(
        default="openai", description="Whose model AI_CORE evaluates by."
    )
    evaluation_ai_model: str = Field(default="", description="Name of that model; AI_CORE needs one.")
    evaluation_answer_seconds: float = Field(
        default=20.0, gt=0, description="How long a model may take to evaluate a picture."
    )
    evaluation_calls: int = Field(
        default=8, ge=1, le=256, description="Pictures that models of providers evaluate at once."
    )
    evaluation_slots: int = Field(default=2, ge=1, le=64, description="Pictures that networks evaluate at once.")
    evaluation_slots_per_tenant: int = Field(
        default=2, ge=1, le=64, description="Pictures of one tenant, of either, that are evaluated at once."
    )
    evaluation_waiting: int = Field(
        default=64, ge=1, le=4096, description="Pictures that wait to be evaluated; more are a 429."
    )
    evaluation_wait_seconds: float = Field(default=15.0, gt=0, description="How long one waits; then it is a 503.")
    evaluation_max_pixels: int = Field(
        default=1 << 25, ge=1024, description="Pixels of a picture that is evaluated, at most."
    )
    evaluation_fetch_seconds: float = Field(
        default=10.0, gt=0, description="How long the address of a picture may take."
    )
    evaluation_threads: int = Field(default=1, ge=0, description="Processor threads of one network; 0 for all.")

    @field_validator("evaluation_providers")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        wanted = tuple(dict.fromkeys(name.strip().upper() for name in names))
        if not wanted or set(wanted) - {LOCAL, AI_CORE, VERTEX}:
            raise ValueError(f"name one of {LOCAL}, {AI_CORE}, {VERTEX} at the least, and no other")
        return wanted

    @model_validator(mode="after")
    def _has_accounts(self) -> EvaluationSettings:
        google = bool(self.vertex_project or self.gemini_key.get_secret_value())
        if VERTEX in self.evaluation_providers and not google:
            raise ValueError("VERTEX needs ATELIER_GEMINI_KEY, its file, or ATELIER_VERTEX_PROJECT")
        if self.vertex_credentials_file is not None and not Path(self.vertex_credentials_file).is_file():
            raise ValueError("ATELIER_VERTEX_CREDENTIALS_FILE names no file")
        if AI_CORE in self.evaluation_providers:
            if not self.evaluation_ai_model:
                raise ValueError("AI_CORE needs ATELIER_EVALUATION_AI_MODEL")
            accounts = {
                "openai": bool(self.openai_key.get_secret_value()),
                "anthropic": bool(self.anthropic_key.get_secret_value()),
                "gemini": google,
                "ollama": bool(self.ollama_url),
            }
            if not accounts[self.evaluation_ai_provider]:
                raise ValueError(f"AI_CORE has no credential of {self.evaluation_ai_provider}")
        return self
