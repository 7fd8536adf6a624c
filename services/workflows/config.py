"""Settings of the workflows service."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import MeshSettings
from meshkit.retention import INTERVAL_DESCRIPTION, SHARE_DESCRIPTION
from meshkit.topology import TASKS, TRAINING, WORKFLOWS


class WorkflowsSettings(MeshSettings):
    """Settings of the workflows service, beside those of `MeshSettings`."""

    listen: str = Field(default=WORKFLOWS.address, description="Address to serve on.")
    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    training_address: str = Field(default=TRAINING.address, description="Address of the training service.")
    catalog_ttl_seconds: float = Field(
        default=30.0, ge=0, description="How long the tasks service's catalog is cached."
    )
    dispatch_concurrency: int = Field(default=32, ge=1, description="Tasks that are created at once.")
    reconcile_interval_seconds: float = Field(
        default=2.0, gt=0, description="How often the reconciler looks for steps without an event."
    )
    resend_seconds: float = Field(
        default=5.0, ge=0, description="Age at which a step that is still DISPATCHING is sent again."
    )
    check_seconds: float = Field(
        default=15.0,
        ge=0,
        description="Age at which the task of a RUNNING step is asked for; without NATS, the interval.",
    )
    abandon_seconds: float = Field(
        default=120.0,
        ge=0,
        description="Time after which the task of a cancelled step, if it was never found, counts as never created; "
        "longer than any call that could still create it.",
    )
    file_sweep_delay_seconds: float = Field(
        default=120.0,
        ge=0,
        description="Age at which the files of a definition are deleted that no workflow owns; longer than a create "
        "takes.",
    )
    retention_interval_seconds: float = Field(default=600.0, gt=0, description=INTERVAL_DESCRIPTION)
    retention_share: float = Field(default=0.05, gt=0, le=1, description=SHARE_DESCRIPTION)
    run_loops: bool = Field(default=True, description="Run relay, consumer and reconciler in this replica.")
