"""Settings of the marker."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from meshkit.config import MeshSettings
from meshkit.topology import TASKS

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class MarkerSettings(MeshSettings):
    """Settings of the marker, beside those of `MeshSettings`."""

    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    kubernetes_url: str = Field(
        default="https://kubernetes.default.svc", description="Address of the API server of Kubernetes."
    )
    kubernetes_token: Path = Field(
        default=_ACCOUNT / "token", description="File of the service account's token; read anew, because it changes."
    )
    kubernetes_ca: Path | None = Field(
        default=_ACCOUNT / "ca.crt", description="File of the authority of the API server's certificate."
    )
    kubernetes_namespace: str = Field(
        default="", description="Namespace of the workers' pods; that of the service account if empty."
    )
    pod_selector: str = Field(
        default="atelier.io/worker=true", description="Labels of the pods that may be marked, as Kubernetes has them."
    )
    mark_seconds: float = Field(default=2.0, gt=0, description="How often the scheduler is asked for cordons.")
    unmark_seconds: float = Field(
        default=5.0,
        ge=0,
        description="How long a pod keeps its mark after its worker is uncordoned: it may be chosen yet, and without "
        "the mark another one would be. No longer than `ATELIER_SCALE_SETTLE_SECONDS` of tasks.",
    )

    @property
    def namespace(self) -> str:
        """The namespace of the workers' pods."""
        if self.kubernetes_namespace:
            return self.kubernetes_namespace
        return self.kubernetes_token.with_name("namespace").read_text(encoding="utf-8").strip()
