"""Settings of the echo service."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import MeshSettings


class EchoSettings(MeshSettings):
    """What the echo service may be told."""

    most_times: int = Field(default=3, ge=1, description="How often a text is repeated at most.")
