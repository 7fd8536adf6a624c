"""Settings of the monitoring service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from meshkit.config import CommaSeparated, MeshSettings
from meshkit.topology import MONITORING, TASKS, TRAINING, WORKFLOWS


class MonitoringSettings(MeshSettings):
    """Settings of the monitoring service, beside those of `MeshSettings`."""

    scaler_listen: str = Field(
        default="", description="Address to serve KEDA's external scaler on; it is not served if empty."
    )
    scaler_certificate: Path | None = Field(
        default=None, description="File of the external scaler's certificate; plain text where it has none."
    )
    scaler_key: Path | None = Field(default=None, description="File of the key of that certificate.")
    scaler_client_ca: Path | None = Field(
        default=None, description="File of the authority that signs the certificates of the scaler's clients."
    )

    listen: str = Field(default=MONITORING.address, description="Address to serve on.")
    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    workflows_address: str = Field(default=WORKFLOWS.address, description="Address of the workflows service.")
    training_address: str = Field(default=TRAINING.address, description="Address of the training service.")
    evaluation_address: str = Field(default="", description="Address of evaluation; a mesh without it has none.")
    capture_address: str = Field(default="", description="Address of capture; a mesh without cameras has none.")
    critical_queues: CommaSeparated = Field(
        default=("inference",),
        description="Queues without whose workers the mesh is unhealthy, separated by commas; those of others must be "
        "there where tasks wait.",
    )
    prometheus_url: str = Field(
        default="", description="Address of Prometheus, whose targets `/api/system/monitoring` tells of."
    )
    loop_history_days: float = Field(
        default=90.0, gt=0, description="Days after which lines of the history of background loops are deleted."
    )

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        files = (self.scaler_certificate, self.scaler_key, self.scaler_client_ca)
        if any(files) and not all(files):
            raise ValueError("scaler_certificate, scaler_key and scaler_client_ca go together")
        return self
