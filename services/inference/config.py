"""What a worker can be told, by `ATELIER_*` variables."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import psutil
from pydantic import Field, SecretStr, field_validator

from meshkit.config import CommaSeparated, MeshSettings
from meshkit.worker.supervisor import ChildLimits
from services.inference.tasktypes import parse_types

_ROOT = Path(__file__).resolve().parents[2]
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CHILD_SHARE = 0.8  # of the container's memory; the rest is the parent's, and room to see the limit coming


class InferenceSettings(MeshSettings):
    """The worker's settings."""

    tasks_address: str = Field(default="127.0.0.1:9101", description="host:port of the tasks service.")
    worker_name: str = Field(default="", description="Unique while it lives; host and process where empty.")
    worker_token: SecretStr | None = Field(default=None, description="Token of scope worker; own ones without.")
    worker_queues: CommaSeparated = Field(default=("inference",), description="Queues to serve.")
    worker_slots: int = Field(default=1, ge=1, le=1024, description="Batches that run at once.")
    worker_prefetch: int | None = Field(default=None, ge=0, description="Attempts to hold beyond the slots; as many.")
    worker_max_batch: int = Field(default=4, ge=1, le=64, description="Most attempts in one batch.")
    worker_batch_wait_ms: float = Field(default=5.0, ge=0, le=1000, description="How long a free slot waits.")
    worker_task_types: CommaSeparated = Field(default=(), description="Types to execute; all but NOOP where empty.")
    model: str = Field(default="models/garments/weights", description="Default model: a folder or a hub name.")
    extra_models: CommaSeparated = Field(default=(), description="Models that tasks may name beside the default.")
    model_download: bool = Field(default=False, description="Whether a hub name may be downloaded.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1.")
    torch_threads: int = Field(default=0, ge=0, description="Processor threads of one computation; 0 for all.")
    model_budget_bytes: int = Field(default=0, ge=0, description="Memory for models; 0 for a share of the device's.")
    child_memory_bytes: int = Field(default=0, ge=0, description="Memory at which the child is killed; 0 for a share.")
    step_deadline_seconds: float = Field(default=120.0, gt=0, description="Longest time between two steps.")
    first_step_deadline_seconds: float = Field(default=900.0, gt=0, description="Longest time to the first step.")
    child_start_seconds: float = Field(default=300.0, gt=0, description="Longest time until a child is ready.")
    data: Path = Field(default=Path(tempfile.gettempdir()) / "atelier", description="Folder for attempts and caches.")
    lora_cache_bytes: int = Field(default=4 << 30, ge=0, description="Local disk for LoRA files.")
    shared_tenant: str = Field(default="shared", description="Tenant whose LoRAs every tenant may use.")
    max_input_bytes: int = Field(default=64 << 20, ge=1024, description="Largest input image.")
    max_lora_bytes: int = Field(default=2 << 30, ge=1024, description="Largest LoRA file.")
    input_timeout_seconds: float = Field(default=60.0, gt=0, description="How long a remote input may take.")

    @field_validator("worker_task_types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        parse_types(names)
        return names

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.worker_name or f"{socket.gethostname()}/{os.getpid()}"

    @property
    def prefetch(self) -> int:
        """Attempts to hold beyond those that run."""
        return self.worker_slots if self.worker_prefetch is None else self.worker_prefetch

    @property
    def default_model(self) -> str:
        """The default model; a relative folder that is not here is looked for beside the program."""
        beside = _ROOT / self.model
        return str(beside) if not Path(self.model).exists() and beside.is_dir() else self.model

    @property
    def limits(self) -> ChildLimits:
        """What the child may take."""
        return ChildLimits(
            memory_bytes=self.child_memory_bytes or int(memory_limit() * _CHILD_SHARE),
            step_seconds=self.step_deadline_seconds,
            first_step_seconds=max(self.first_step_deadline_seconds, self.step_deadline_seconds),
            start_seconds=self.child_start_seconds,
            sample_seconds=min(0.5, self.step_deadline_seconds / 4),
        )


def memory_limit() -> int:
    """Bytes that this container, or machine, has."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total
