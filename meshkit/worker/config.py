"""Settings of every worker, by `ATELIER_*` variables."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import psutil
from pydantic import Field, SecretStr

from meshkit.config import CommaSeparated, MeshSettings
from meshkit.lingers import DEVICE_BATCH_LINGER
from meshkit.topology import TASKS
from meshkit.worker.supervisor import ChildLimits

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_ROOT = Path(__file__).resolve().parents[2]
_CHILD_SHARE = 0.8  # of the container's memory; the rest is the parent's, and room to see the limit coming


class WorkerSettings(MeshSettings):
    """The settings of any worker."""

    tasks_address: str = Field(default=TASKS.address, description="host:port of the tasks service.")
    worker_name: str = Field(default="", description="Unique while the worker lives; host and process if empty.")
    worker_token: SecretStr | None = Field(
        default=None, description="Token of scope worker; signed by itself if unset."
    )
    worker_queues: CommaSeparated = Field(default=("inference",), description="Queues to serve.")
    worker_slots: int = Field(default=1, ge=1, le=1024, description="Batches that run at once.")
    worker_prefetch: int | None = Field(
        default=None, ge=0, description="Attempts held beyond the slots; as many if unset."
    )
    worker_fetches: int = Field(
        default=32, ge=1, le=1024, description="Attempts of a pool whose inputs are fetched from addresses at once."
    )
    worker_fetches_per_tenant: int = Field(
        default=4, ge=1, le=1024, description="Those among them of one tenant; its other tasks wait in the queue."
    )
    worker_max_batch: int = Field(default=4, ge=1, le=64, description="Most attempts in one batch.")
    worker_batch_wait_ms: float = Field(
        default=1000 * DEVICE_BATCH_LINGER, ge=0, le=1000, description="How long a batch waits to fill."
    )
    child_memory_bytes: int = Field(
        default=0, ge=0, description="Memory at which the child is killed; 0 for four fifths."
    )
    step_deadline_seconds: float = Field(default=120.0, gt=0, description="Longest time between two steps.")
    first_step_deadline_seconds: float = Field(default=900.0, gt=0, description="Longest time to the first step.")
    child_start_seconds: float = Field(default=300.0, gt=0, description="Longest time until a child is ready.")
    data: Path = Field(default=Path(tempfile.gettempdir()) / "atelier", description="Folder for attempts and caches.")
    lora_cache_bytes: int = Field(default=4 << 30, ge=0, description="Local disk for LoRA files.")
    shared_tenant: str = Field(default="shared", description="Tenant whose LoRAs every tenant may use.")
    max_input_bytes: int = Field(
        default=64 << 20, ge=1024, description="Largest input image that comes as data or from an address."
    )
    max_lora_bytes: int = Field(default=2 << 30, ge=1024, description="Largest LoRA file.")
    input_timeout_seconds: float = Field(default=60.0, gt=0, description="How long a remote input may take.")

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.worker_name or f"{socket.gethostname()}/{os.getpid()}"

    @property
    def prefetch(self) -> int:
        """Attempts to hold beyond those that run."""
        return self.worker_slots if self.worker_prefetch is None else self.worker_prefetch

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


def beside_program(place: str) -> str:
    """Return a model's place as it is; a relative folder that is not here is looked for beside the program."""
    beside = _ROOT / place
    return str(beside) if not Path(place).exists() and beside.is_dir() else place
