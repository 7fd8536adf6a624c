"""Settings of capture."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from meshkit.auth import valid_tenant
from meshkit.config import MeshSettings
from meshkit.topology import CAPTURE, TASKS, WORKFLOWS


class CaptureSettings(MeshSettings):
    """Settings of capture, beside those of `MeshSettings`."""

    listen: str = Field(default=CAPTURE.address, description="Address to serve on.")
    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    workflows_address: str = Field(default=WORKFLOWS.address, description="Address of the workflows service.")
    camera_root: Path | None = Field(
        default=None, description="Folder whose folders are cameras; capture does not start without it."
    )
    capture_tenant: str = Field(
        default="default", description="Tenant that photos, events and alerts belong to; nobody else sees them."
    )
    capture_instance: str = Field(default="capture", description="`origin_instance` of the tasks that capture makes.")
    capture_zone: str = Field(default="", description="`origin_zone` of the tasks that capture makes.")
    capture_observer: Literal["auto", "native", "polling"] = Field(
        default="auto",
        description="How changes of files are noticed: `native` has the kernel tell, `polling` looks again and again, "
        "`auto` polls where the kernel does not tell, as on a network drive.",
    )
    capture_poll_seconds: float = Field(default=2.0, gt=0, description="How often polling looks.")
    capture_scan_seconds: float = Field(
        default=60.0, gt=0, description="How often all folders are looked through besides what the kernel told."
    )
    capture_settle_seconds: float = Field(
        default=0.3, gt=0, description="How long a file that ends as its format does must stay unchanged to be taken."
    )
    capture_quiet_seconds: float = Field(
        default=10.0, gt=0, description="The same for a file that does not: nobody writes it any more."
    )
    capture_max_photo_bytes: int = Field(
        default=256 * 1024 * 1024, ge=1024, description="Largest file that is read; a larger one is told of and left."
    )
    camera_offline_seconds: float = Field(
        default=3600.0, gt=0, description="How long no photo must have come for a camera to be offline."
    )
    capture_batch_seconds: int = Field(
        default=90, ge=1, description="How long after its first photo a batch takes further ones."
    )
    capture_idle_seconds: int = Field(
        default=30, ge=1, description="How long after its last photo a batch takes further ones."
    )
    run_loops: bool = Field(default=True, description="Run the loops in this replica.")

    @field_validator("capture_tenant")
    @classmethod
    def _a_tenant(cls, value: str) -> str:
        if not valid_tenant(value):
            raise ValueError("is not a tenant's name")
        return value
