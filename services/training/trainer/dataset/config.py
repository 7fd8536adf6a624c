"""Settings of the making of datasets: a service that writes captions, by `ATELIER_*` variables."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from meshkit.worker.config import WorkerSettings


def _address(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None):
        raise ValueError("must be http:// or https:// with a host, and without credentials")
    return value.rstrip("/")


class CaptionSettings(WorkerSettings):
    """The settings of a worker that makes datasets."""

    caption_url: Annotated[str, AfterValidator(_address)] = Field(
        default="",
        description="Base address of a service that describes pictures for captions by the strategy auto, in the "
        "protocol of OpenAI's chat completions (https://api.openai.com/v1); the mesh's own describer if empty.",
    )
    caption_key: SecretStr = Field(default=SecretStr(""), description="Its key; none is sent if empty.")
    caption_model: str = Field(default="gpt-4o-mini", max_length=255, description="Its model; one that sees pictures.")
    caption_seconds: float = Field(default=60.0, gt=0, description="How long it may take for a picture.")
