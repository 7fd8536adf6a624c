"""Tasks for fal's providers."""

from pathlib import Path
from typing import Any

from atelier.tasks.v1.enums_pb2 import PROVIDER_TYPE_FAL_STANDARD
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask, GenerationTaskPublic
from atelier.tasks.v1.providers_pb2 import FalStandardConfig, ProviderConfig
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from google.protobuf.json_format import ParseDict
from PIL import Image

from tests.providers.attempt import FakeAttempt

APP = "fal-ai/flux/dev"


def fal_config(**more: Any) -> ProviderConfig:
    settings = FalStandardConfig(fal_app_id=APP)
    ParseDict({"additional_static_params": more}, settings)
    return ProviderConfig(fal_standard=settings)


def drawing(tmp_path: Path, **static: Any) -> FakeAttempt:
    spec = CreateTask(
        provider_type=PROVIDER_TYPE_FAL_STANDARD,
        provider_config=fal_config(**static),
        generation=CreateGenerationTask(prompt="a hat", width=48, height=32, seed=7),
    )
    return FakeAttempt(tmp_path, spec, Task(id="t", generation=GenerationTaskPublic(seed=7)))


def made(tmp_path: Path, name: str = "image.png") -> Image.Image:
    with Image.open(tmp_path / name) as image:
        image.load()
        return image


def input_file(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / f"{name}.png"
    path.write_bytes(data)
    return path


def fal_task(spec: dict[str, Any], **more: Any) -> CreateTask:
    return ParseDict(spec, CreateTask(provider_config=fal_config(**more)))
