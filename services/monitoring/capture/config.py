"""Settings of capture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from meshkit.auth import valid_tenant
from meshkit.config import MeshSettings
from meshkit.topology import CAPTURE, TASKS, WORKFLOWS
from services.monitoring.capture.analysis.text_calls import TextSource


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
    capture_max_photo_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="Largest file that is read; a larger one is told of and left. `ATELIER_MAX_IMAGE_BYTES` if unset, "
        "and never more: nothing would decode it.",
    )
    capture_detections_at_once: int = Field(
        default=8, ge=1, le=256, description="How many photos tasks look at at the same time."
    )
    capture_workflow: Path | None = Field(
        default=None,
        description="File of a workflow, as YAML or JSON, that runs once for each photo; `@photo` in it is the photo.",
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
    capture_rules: str = Field(
        default="studio",
        min_length=1,
        description="What risk means, and which events become alerts: `studio`, `guard`, or a TOML file of your own.",
    )
    capture_webhook_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        max_length=2048,
        description="Address that is told of alerts whose rule names none; nobody is told if empty.",
    )
    capture_summary: str = Field(
        default="LOCAL",
        description="Provider whose language model is asked for summaries of events, which it is given in words; "
        "`NONE` asks nobody.",
    )
    capture_summary_config: dict[str, Any] = Field(
        default_factory=dict,
        description="JSON object with settings of that provider, such as its `model`; of `LOCAL`, members of the "
        "task's `config`.",
    )
    capture_summary_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long an event waits for a language model before it keeps its plain summary.",
    )
    capture_keep_days: float = Field(
        default=30.0,
        gt=0,
        description="Days after which photos, what was found on them, events and alerts are forgotten.",
    )
    capture_keep_bytes: int | None = Field(
        default=None, ge=0, description="Bytes of photos that are kept, the newest first; no bound if unset."
    )
    capture_delete_files: bool = Field(
        default=False, description="Whether files of photos that are forgotten are deleted."
    )
    capture_cleanup_seconds: float = Field(
        default=600.0, gt=0, description="How often it is looked for what is to be forgotten."
    )
    run_loops: bool = Field(default=True, description="Run the loops in this replica.")

    @property
    def photo_bytes(self) -> int:
        """Bytes of the largest file that is read."""
        most = self.capture_max_photo_bytes
        return self.max_image_bytes if most is None else min(most, self.max_image_bytes)

    @field_validator("capture_tenant")
    @classmethod
    def _a_tenant(cls, value: str) -> str:
        if not valid_tenant(value):
            raise ValueError("is not a tenant's name")
        return value

    @model_validator(mode="after")
    def _names_a_model(self) -> Self:
        if self.capture_summary != "NONE":
            TextSource(self.capture_summary, self.capture_summary_config).check()
        return self
