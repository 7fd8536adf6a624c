"""Limits of providers as they are written in settings: JSON, by provider or by provider and key."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.tasks.providers.domain import (
    BreakerPolicy,
    BucketPolicy,
    GateLimits,
    GateName,
    ProviderLimits,
    TenantLimits,
)
from services.tasks.providers.gates import GATED

_DEFAULT = BreakerPolicy()


class GateSettings(BaseModel):
    """What calls to a provider, or to one of its applications or models, are held to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1)
    failure_threshold: int = Field(default=_DEFAULT.failure_threshold, ge=1)
    recovery_timeout: float = Field(default=_DEFAULT.recovery_timeout, gt=0, le=86_400)
    half_open_max_calls: int = Field(default=_DEFAULT.half_open_max_calls, ge=1)
    success_threshold: int = Field(default=_DEFAULT.success_threshold, ge=1)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.success_threshold > self.half_open_max_calls:
            raise ValueError("success_threshold is above half_open_max_calls: the breaker would never close")
        if self.burst is not None and self.rate is None:
            raise ValueError("burst takes a rate")
        return self

    def limits(self) -> GateLimits:
        """Return them as the scheduler has them."""
        return GateLimits(
            self.concurrency,
            _bucket(self.rate, self.burst),
            BreakerPolicy(
                self.failure_threshold, self.recovery_timeout, self.half_open_max_calls, self.success_threshold
            ),
        )


def _gated(provider: str) -> str:
    if provider not in GATED:
        raise ValueError(f"{provider!r} is no provider that is called; those are {', '.join(sorted(GATED))}")
    return provider


def _gates(settings: dict[str, GateSettings]) -> dict[str, GateSettings]:
    for name in settings:
        _gated(name.partition("/")[0])
    return settings


class TenantGateSettings(BaseModel):
    """What a tenant's calls to a provider are held to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("burst takes a rate")
        return self

    def limits(self) -> TenantLimits:
        """Return them as the scheduler has them."""
        return TenantLimits(self.concurrency, _bucket(self.rate, self.burst))


def _bucket(rate: float | None, burst: int | None) -> BucketPolicy | None:
    return None if rate is None else BucketPolicy(rate, burst or max(1, math.ceil(rate)))


TenantsByName = dict[str, dict[str, int | TenantGateSettings]]


def _tenants(settings: TenantsByName) -> TenantsByName:
    for tenant, limits in settings.items():
        if not tenant:
            raise ValueError("a tenant has a name; `*` stands for all that are not named")
        for provider, most in limits.items():
            _gated(provider)
            if isinstance(most, int) and most < 1:
                raise ValueError(f"{provider}: at least 1 call at once")
    return settings


GateSettingsByName = Annotated[dict[str, GateSettings], AfterValidator(_gates)]
"""By provider, or by provider and application or model: `{"NAME": {"concurrency": 10}, "NAME/model": {"rate": 2}}`."""
TenantCalls = Annotated[TenantsByName, AfterValidator(_tenants)]
"""By tenant and provider, `*` for tenants not named: `{"*": {"NAME": 4}, "acme": {"NAME": {"rate": 2}}}`."""


def _editor(name: str) -> str:
    return name if name == "LOCAL" else _gated(name)


EditorName = Annotated[str, AfterValidator(_editor)]
"""Who redraws parts for pipelines: the devices of this mesh, or a provider that is called."""


def limits_of(gates: dict[str, GateSettings], tenants: TenantsByName, editor: str = "LOCAL") -> ProviderLimits:
    """Return the limits of an installation from its settings."""
    names = {name: GateName(*name.split("/", 1)) for name in gates}
    held = {
        tenant: {name: TenantLimits(one) if isinstance(one, int) else one.limits() for name, one in limits.items()}
        for tenant, limits in tenants.items()
    }
    return ProviderLimits({names[name]: one.limits() for name, one in gates.items()}, held, editor)
