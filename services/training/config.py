"""Settings of the training service."""

from __future__ import annotations

from pydantic import Field

from meshkit.config import CommaSeparated, MeshSettings
from meshkit.retention import INTERVAL_DESCRIPTION, SHARE_DESCRIPTION
from meshkit.topology import TASKS, TRAINING
from services.training.library.bases import FLUX_DEV, SHIPPED


class TrainingSettings(MeshSettings):
    """Settings of the training service, beside those of `MeshSettings`."""

    listen: str = Field(default=TRAINING.address, description="Address to serve on.")
    tasks_address: str = Field(default=TASKS.address, description="Address of the tasks service.")
    trained_models: CommaSeparated = Field(
        default=(),
        description="Names of the base models that the trainers of this installation have: others are refused. Where "
        "unset, any is accepted, and a trainer that has it not fails the training.",
    )
    tenant_waiting_trainings: int = Field(
        default=20, ge=1, description="Trainings of a tenant that have not ended; beyond it creates are refused."
    )
    training_input_bytes: int = Field(
        default=2 * 1024 * 1024 * 1024,
        ge=1,
        description="Bytes of images that one request to train may bring along or have uploaded.",
    )
    training_timeout_seconds: float = Field(
        default=86_400.0, gt=0, le=2_592_000.0, description="How long one attempt at a training may run."
    )
    training_keep_days: float = Field(
        default=90.0,
        gt=0,
        description="Days after its end at which the dataset, saves, samples and state of a training are deleted; its "
        "adapter stays in the library.",
    )
    training_sweep_delay_seconds: float = Field(
        default=120.0, ge=0, description="Age at which objects that a late trainer may still have written are deleted."
    )
    reconcile_interval_seconds: float = Field(
        default=5.0, gt=0, description="How often jobs are made, and asked for, that no event has told of."
    )
    lora_models: CommaSeparated = Field(
        default=(SHIPPED, FLUX_DEV),
        description="Models whose LoRAs the library takes, judged by the shapes of their layers: folders of FLUX "
        "models, or the name of FLUX.1-dev. Where ATELIER_MODEL names a folder, name it here too.",
    )
    max_lora_bytes: int = Field(
        default=500 * 1024 * 1024, ge=1024, description="Largest LoRA file that the library takes as an upload."
    )
    loras_at_once: int = Field(
        default=2, ge=1, description="LoRA files that are judged at once; each lies on the local disk meanwhile."
    )
    lora_conversion_seconds: float = Field(
        default=60.0, gt=0, description="How long the conversion of a file of torch may take."
    )
    shared_tenant: str = Field(default="shared", description="Tenant whose LoRA adapters everyone may use.")
    retention_interval_seconds: float = Field(default=600.0, gt=0, description=INTERVAL_DESCRIPTION)
    retention_share: float = Field(default=0.05, gt=0, le=1, description=SHARE_DESCRIPTION)
    run_loops: bool = Field(default=True, description="Run relay, consumer and reconciler in this replica.")
