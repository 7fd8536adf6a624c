"""Settings of the workflows service."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import MeshSettings
from meshkit.topology import TASKS, WORKFLOWS


class WorkflowsSettings(MeshSettings):
    """What the workflows service may be told; see `MeshSettings` for what every service may."""

    listen: str = Field(default=WORKFLOWS.address, description="Address to serve on.")
    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    catalog_ttl_seconds: float = Field(
        default=30.0, ge=0, description="How long what the tasks service serves is believed before it is asked again."
    )
    dispatch_concurrency: int = Field(default=32, ge=1, description="Tasks that are made at once.")
    reconcile_interval_seconds: float = Field(
        default=2.0, gt=0, description="How often steps are looked for that no news came of."
    )
    resend_seconds: float = Field(
        default=5.0, ge=0, description="Age at which a step that is still DISPATCHING is sent again."
    )
    check_seconds: float = Field(
        default=15.0,
        ge=0,
        description="Age at which the task of a RUNNING step is asked for; without NATS, how often it is.",
    )
    abandon_seconds: float = Field(
        default=120.0,
        ge=0,
        description="Time after which a cancelled step's task that was never found is taken not to exist; longer than "
        "any call that could still make it.",
    )
    run_loops: bool = Field(default=True, description="Run relay, consumer and reconciler in this replica.")
