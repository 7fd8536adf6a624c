"""Settings of the evaluation role, by `ATELIER_*` variables."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import MeshSettings


class EvaluationSettings(MeshSettings):
    """The evaluation role's settings."""

    evaluation_slots: int = Field(default=2, ge=1, le=64, description="Pictures that are evaluated at once.")
    evaluation_slots_per_tenant: int = Field(default=2, ge=1, le=64, description="Those among them of one tenant.")
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
