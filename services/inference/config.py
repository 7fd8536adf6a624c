"""Settings of the inference worker, by `ATELIER_*` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from meshkit import cutouts, likeness
from meshkit.config import CommaSeparated
from meshkit.worker.config import beside_program
from services.inference.providers import LOCAL, parse_providers
from services.inference.providers.config import ProviderSettings
from services.inference.tasktypes import parse_types


class InferenceSettings(ProviderSettings):
    """The inference worker's settings."""

    worker_task_types: CommaSeparated = Field(default=(), description="Task types to execute; all but NOOP if empty.")
    worker_providers: CommaSeparated = Field(
        default=(LOCAL,), description="Providers to serve: LOCAL is the device, others are called."
    )
    worker_calls: int = Field(default=16, ge=1, le=1024, description="Calls to providers at once, for each queue.")
    model: str = Field(default="models/garments/weights", description="Default model: a folder or a hub name.")
    edit_model: str = Field(
        default="models/edits/weights", description="Model that edits where a task names none: a folder or a hub name."
    )
    video_model: str = Field(default="models/motions/weights", description="Model of clips: a folder or a hub name.")
    extra_models: CommaSeparated = Field(default=(), description="Models that tasks may name besides the default.")
    language_model: str = Field(
        default="", description="Default language model: a GGUF file or a folder; SmolLM2 of its package if empty."
    )
    model_download: bool = Field(default=False, description="Whether a hub name may be downloaded.")
    cutout_models: cutouts.CutoutFiles = Field(default_factory=dict, description=cutouts.DESCRIPTION)
    consistency_networks: likeness.NetworkFiles = Field(default_factory=dict, description=likeness.DESCRIPTION)
    content_threshold: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Pictures that the content check scores above it fail (CONTENT_POLICY): 0.8; 0 for no check.",
    )
    picture_notes: bool = Field(
        default=True, description="Whether result pictures say how they were made (prompt, model, seed)."
    )
    device: str = Field(default="auto", description="Device: auto, cpu, cuda, cuda:1.")
    torch_threads: int = Field(default=0, ge=0, description="Processor threads of one computation; 0 for all.")
    model_budget_bytes: int = Field(default=0, ge=0, description="Memory for models; 0 for four fifths of the free.")

    @field_validator("worker_task_types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        parse_types(names)
        return names

    @field_validator("worker_providers")
    @classmethod
    def _known_providers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return parse_providers(names)

    @field_validator("cutout_models", "consistency_networks")
    @classmethod
    def _present(cls, files: dict[str, str]) -> dict[str, str]:
        if missing := [name for name, path in files.items() if not Path(path).is_file()]:
            raise ValueError(f"there is no file of {', '.join(missing)}")
        return files

    @property
    def family_defaults(self) -> dict[str, str]:
        """Default models by family, where settings name them."""
        named = {
            "kontext": self.edit_model and beside_program(self.edit_model),
            "language": self.language_model,
            "video": self.video_model and beside_program(self.video_model),
        }
        return {family: place for family, place in named.items() if place}

    @property
    def default_model(self) -> str:
        """The default model; a relative folder that is not here is looked for beside the program."""
        return beside_program(self.model)
