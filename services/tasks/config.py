"""Settings of the tasks service."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from meshkit import cutouts, likeness
from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.config import CommaSeparated, MeshSettings
from meshkit.retention import INTERVAL_DESCRIPTION, SHARE_DESCRIPTION
from meshkit.topology import TASKS
from services.tasks.catalog import LOCAL, PROVIDERS_WITH_HANDLERS, TASK_TYPES_WITH_HANDLERS
from services.tasks.providers.config import EditorName, GateSettingsByName, TenantCalls, limits_of
from services.tasks.providers.domain import ProviderLimits
from services.tasks.retention.domain import RetentionKind
from services.tasks.scaling.domain import ScalePolicy


def _weights(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = (part.rpartition("=") for part in value.split(",") if part.strip())
    return {tenant.strip(): float(weight) for tenant, _, weight in pairs}


def _known(what: str, names: tuple[str, ...], declared: Collection[str]) -> tuple[str, ...]:
    if unknown := sorted(set(names) - set(declared)):
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(declared)}")
    return names


# `tenant=3,other=1`, as people write it in an environment.
Weights = Annotated[dict[str, float], NoDecode, BeforeValidator(_weights)]


class TasksSettings(MeshSettings):
    """Settings of the tasks service, beside those of `MeshSettings`."""

    listen: str = Field(default=TASKS.address, description="Address to serve on.")
    served_task_types: CommaSeparated = Field(
        default=TASK_TYPES_WITH_HANDLERS,
        description="Task types that are accepted: `GENERATION,EDITING`. Where unset, also those of a provider that is "
        "served and no worker's device executes.",
    )
    served_providers: CommaSeparated = Field(
        default=PROVIDERS_WITH_HANDLERS, description="Providers that tasks may name: `LOCAL,FAL_STANDARD`."
    )
    enable_noop: bool = Field(default=False, description="Serve NOOP tasks, for tests and benchmarks.")
    cutout_models: cutouts.CutoutFiles = Field(default_factory=dict, description=cutouts.DESCRIPTION)
    consistency_networks: likeness.NetworkFiles = Field(default_factory=dict, description=likeness.DESCRIPTION)
    lease_ttl_seconds: float = Field(default=15.0, gt=0, description="How long a session lives without a heartbeat.")
    heartbeat_seconds: float = Field(
        default=0.0, ge=0, description="Heartbeat interval of workers; 0 for a third of the lease's time."
    )
    max_retries: int = Field(default=3, ge=0, description="Attempts at a task beyond the first.")
    retry_base_seconds: float = Field(
        default=0.5,
        ge=0,
        description="Longest wait before the first retry of a failed attempt; it doubles with each, and the wait is "
        "drawn from 0 up to it.",
    )
    max_retry_after_seconds: float = Field(
        default=3600.0, ge=0, description="Longest wait before a retry that a provider can ask for."
    )
    fallback_seconds: float = Field(
        default=60.0,
        ge=0,
        description="A task with a fallback waits for its first provider no longer than this where that asks to be "
        "left alone, or is not called for its errors.",
    )
    acknowledge_seconds: float = Field(
        default=5.0, gt=0, description="A lease that its worker has not acknowledged by then goes back."
    )
    tenant_weights: Weights = Field(
        default_factory=dict, description="Shares of tenants, `tenant=3,other=1`; 1 for others."
    )
    provider_limits: GateSettingsByName = Field(
        default_factory=dict,
        description="What calls to providers are held to, as JSON by provider, or by provider and application or "
        'model: `{"NAME": {"concurrency": 10, "rate": 5, "burst": 10, "failure_threshold": 5, '
        '"recovery_timeout": 30, "half_open_max_calls": 3, "success_threshold": 2}}`; each may be left out, `rate` is '
        "in calls a second.",
    )
    tenant_provider_limits: TenantCalls = Field(
        default_factory=dict,
        description="Calls of a tenant that a provider executes at once, as JSON by tenant, `*` for those not named: "
        '`{"*": {"NAME": 4}}`, or calls over time too: `{"*": {"NAME": {"concurrency": 4, "rate": 0.5, "burst": 3}}}`; '
        "others wait.",
    )
    ultimate_editor: EditorName = Field(
        default=LOCAL,
        description="Who redraws parts for the SARTIQ_ULTIMATE pipelines, as the workers have it; what they ask of a "
        "provider is counted there.",
    )
    default_max_wait_seconds: float = Field(default=30.0, gt=0, le=60, description="Longest wait of one Lease call.")
    sweep_interval_seconds: float = Field(default=1.0, gt=0, description="How often expired leases are searched.")
    object_sweep_delay_seconds: float = Field(
        default=120.0, ge=0, description="Age at which objects of lost attempts are deleted."
    )
    staging_max_age_seconds: float = Field(default=7200.0, gt=0, description="Age at which unused uploads are deleted.")
    shared_tenant: str = Field(default="shared", description="Tenant whose LoRA adapters everyone may use.")
    scale_drain_seconds: float = Field(
        default=60.0, gt=0, description="In how long waiting work is to be done; workers are scaled by it."
    )
    scale_utilization: float = Field(
        default=0.8, gt=0, le=1, description="Share of the slots of all workers that is to be busy."
    )
    scale_in_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long a worker is too many before it is cordoned, so that it can be removed; 0 cordons none.",
    )
    scale_keep: int = Field(
        default=0, ge=0, description="Workers, of each kind that serves the same queues, that are never cordoned."
    )
    scale_settle_seconds: float = Field(
        default=5.0,
        ge=0,
        description="How long a worker that was about to be removed gets no lease after it is uncordoned: it may have "
        "been chosen already.",
    )
    keep_tasks_days: int = Field(
        default=0, ge=0, le=36500, description="Days after its end at which a task is deleted with its files; 0 never."
    )
    keep_workflows_days: int = Field(
        default=0,
        ge=0,
        le=36500,
        description="Days after its end at which a workflow is deleted with its files and tasks; 0 never.",
    )
    keep_trainings_days: int = Field(
        default=0,
        ge=0,
        le=36500,
        description="Days after its end at which a training is deleted, but for its adapter; 0 never.",
    )
    keep_deliveries_days: int = Field(
        default=30,
        ge=0,
        le=36500,
        description="Days after its end at which a delivery of a webhook is deleted; 0 never.",
    )
    keep_usage_days: int = Field(default=0, ge=0, le=36500, description="Days after which usage is deleted; 0 never.")
    keep_task_ids_days: int = Field(
        default=365,
        ge=1,
        le=36500,
        description="Days for which the identifier of a deleted task is given to no other.",
    )
    retention_interval_seconds: float = Field(default=600.0, gt=0, description=INTERVAL_DESCRIPTION)
    retention_share: float = Field(default=0.05, gt=0, le=1, description=SHARE_DESCRIPTION)
    run_loops: bool = Field(default=True, description="Run the relay and the sweepers in this replica.")

    @field_validator("served_task_types")
    @classmethod
    def _declared_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("task types", names, TASK_TYPES)

    @field_validator("served_providers")
    @classmethod
    def _declared_providers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("providers", names, PROVIDERS)

    @property
    def accepted_task_types(self) -> tuple[str, ...]:
        """Task types that are accepted: those that are named, else those of the device and of the served providers."""
        if "served_task_types" in self.model_fields_set:
            return self.served_task_types
        called = [
            name
            for name, spec in TASK_TYPES.items()
            if not spec.internal and spec.default_provider in self.served_providers and spec.default_provider != LOCAL
        ]
        return (*self.served_task_types, *called)

    @property
    def scale_policy(self) -> ScalePolicy:
        """How many workers there are to be."""
        return ScalePolicy(
            self.scale_drain_seconds,
            self.scale_utilization,
            self.scale_in_seconds,
            self.scale_keep,
            self.scale_settle_seconds,
        )

    @property
    def retention_days(self) -> dict[RetentionKind, int]:
        """Days for which what has ended is kept where no rule was set."""
        return {
            RetentionKind.TASKS: self.keep_tasks_days,
            RetentionKind.WORKFLOWS: self.keep_workflows_days,
            RetentionKind.TRAININGS: self.keep_trainings_days,
            RetentionKind.DELIVERIES: self.keep_deliveries_days,
            RetentionKind.USAGE: self.keep_usage_days,
        }

    @property
    def gate_limits(self) -> ProviderLimits:
        """What the gates of providers are held to."""
        return limits_of(self.provider_limits, self.tenant_provider_limits, self.ultimate_editor)

    @property
    def heartbeat_interval_seconds(self) -> float:
        """Interval of heartbeats: two may be lost before a session ends."""
        return self.heartbeat_seconds or self.lease_ttl_seconds / 3
