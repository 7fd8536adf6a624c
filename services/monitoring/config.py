"""Settings of the monitoring service."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import MeshSettings
from meshkit.topology import MONITORING


class MonitoringSettings(MeshSettings):
    """Settings of the monitoring service, beside those of `MeshSettings`."""

    listen: str = Field(default=MONITORING.address, description="Address to serve on.")
    loop_history_days: float = Field(
        default=90.0, gt=0, description="Days after which lines of the history of background loops are deleted."
    )
