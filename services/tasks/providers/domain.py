"""Breakers, buckets and limits of providers. Pure: the present is told to it, by the database's clock."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

from services.tasks.service_requests import ServiceRequestEffect

# A provider that asks to be left alone for longer is asked again all the same.
MAX_REST_SECONDS = 3600.0


class BreakerState(enum.StrEnum):
    """Whether a provider is called."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens and closes.

    Attributes:
        failure_threshold: So many failures, one after the other, open it.
        recovery_timeout: Seconds from then until it is half open.
        half_open_max_calls: So many calls are then admitted as trials.
        success_threshold: So many trials that succeed close it.
    """

    failure_threshold: int = 5
    recovery_timeout: float = 30.0
    half_open_max_calls: int = 3
    success_threshold: int = 2


@dataclass(frozen=True, slots=True)
class Breaker:
    """A breaker; closed where nothing has happened.

    Attributes:
        failure_count: Failures since the last success.
        success_count: Trials that have succeeded since it was half open.
        opened_at: When it opened; none while it is closed.
        last_failure_at: When a call failed last.
        trials: Calls that were admitted since it was half open and have told nothing yet.
    """

    state: BreakerState = BreakerState.CLOSED
    failure_count: int = 0
    success_count: int = 0
    opened_at: datetime | None = None
    last_failure_at: datetime | None = None
    trials: frozenset[str] = frozenset()

    def at(self, now: datetime, policy: BreakerPolicy) -> Breaker:
        """Return the breaker as it stands now: one that has been open for long enough is half open."""
        if self.state is BreakerState.OPEN and self.opens_at(policy) <= now:
            return replace(self, state=BreakerState.HALF_OPEN, success_count=0, trials=frozenset())
        return self

    def opens_at(self, policy: BreakerPolicy) -> datetime:
        """When an open breaker is half open."""
        assert self.opened_at is not None, "an open breaker has a time"
        return self.opened_at + timedelta(seconds=policy.recovery_timeout)

    def places(self, policy: BreakerPolicy) -> int | None:
        """How many more calls are admitted; None for any number."""
        if self.state is BreakerState.CLOSED:
            return None
        if self.state is BreakerState.OPEN:
            return 0
        return max(0, policy.half_open_max_calls - self.success_count - len(self.trials))

    def admit(self, call: str) -> Breaker:
        """Admit a call; one that has no place is a mistake of whoever asks."""
        return self if self.state is BreakerState.CLOSED else replace(self, trials=self.trials | {call})

    def without(self, lost: Collection[str]) -> Breaker:
        """Give the places of trials back that ended and told nothing."""
        return replace(self, trials=self.trials.difference(lost)) if self.trials.intersection(lost) else self

    def after(self, call: str, effect: ServiceRequestEffect, now: datetime, policy: BreakerPolicy) -> Breaker:
        """Return the breaker after a call has ended.

        While it is half open, only its trials count, each by the first thing that it tells: a call that was admitted
        before tells of another time. So does any call that ends while the breaker is open.

        Args:
            call: The call, as it was admitted.
            effect: What is to be made of it.
            now: The present.
            policy: When it opens and closes.
        """
        if effect is ServiceRequestEffect.IGNORED or self.state is BreakerState.OPEN:
            return self
        if self.state is BreakerState.HALF_OPEN:
            return self._after_trial(call, effect, now, policy) if call in self.trials else self
        if effect is ServiceRequestEffect.SUCCESS:
            return replace(self, failure_count=0) if self.failure_count else self
        opens = effect is ServiceRequestEffect.FATAL or self.failure_count + 1 >= policy.failure_threshold
        return self._failed(now, opens=opens)

    def _after_trial(self, call: str, effect: ServiceRequestEffect, now: datetime, policy: BreakerPolicy) -> Breaker:
        if effect is not ServiceRequestEffect.SUCCESS:
            return self._failed(now, opens=True)
        succeeded = self.success_count + 1
        if succeeded >= policy.success_threshold:
            return self.reset()
        return replace(self, success_count=succeeded, trials=self.trials - {call})

    def _failed(self, now: datetime, *, opens: bool) -> Breaker:
        failed = replace(self, failure_count=self.failure_count + 1, last_failure_at=now)
        if not opens:
            return failed
        return replace(failed, state=BreakerState.OPEN, opened_at=now, success_count=0, trials=frozenset())

    def reset(self) -> Breaker:
        """Close it, whatever it was."""
        return Breaker(last_failure_at=self.last_failure_at)


@dataclass(frozen=True, slots=True)
class BucketPolicy:
    """How fast calls may be made.

    Attributes:
        rate: Calls a second in the long run.
        burst: Calls at once after a rest.
    """

    rate: float
    burst: int


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket that each call takes a token from.

    Attributes:
        tokens: How many it holds at `filled_at`; None for a full one.
        blocked_until: No call before, because the provider asked for it.
    """

    tokens: float | None = None
    filled_at: datetime | None = None
    blocked_until: datetime | None = None

    def level(self, now: datetime, policy: BucketPolicy) -> float:
        """How many tokens it holds now."""
        if self.tokens is None or self.filled_at is None:
            return float(policy.burst)
        passed = max(0.0, (now - self.filled_at).total_seconds())
        return min(float(policy.burst), self.tokens + passed * policy.rate)

    def places(self, now: datetime, policy: BucketPolicy | None) -> int | None:
        """How many calls may be made now; None for any number."""
        if self.blocked_until is not None and self.blocked_until > now:
            return 0
        # A hair is forgiven, or a token that is due would be missed by a rounding error.
        return None if policy is None else math.floor(self.level(now, policy) + 1e-9)

    def take(self, calls: int, now: datetime, policy: BucketPolicy | None) -> TokenBucket:
        """Return the bucket after so many calls, which had their places."""
        if policy is None or not calls:
            return self
        return replace(self, tokens=max(0.0, self.level(now, policy) - calls), filled_at=now)

    def rest(self, seconds: float, now: datetime) -> TokenBucket:
        """Let no call through for so long; an earlier wish that is longer stands."""
        until = now + timedelta(seconds=min(max(0.0, seconds), MAX_REST_SECONDS))
        return (
            self
            if self.blocked_until is not None and self.blocked_until >= until
            else replace(self, blocked_until=until)
        )

    def refuses_until(self, now: datetime, policy: BucketPolicy | None) -> datetime:
        """When a bucket that has no place now has one."""
        if self.blocked_until is not None and self.blocked_until > now:
            return self.blocked_until
        assert policy is not None, "a bucket without a rate has places"
        return now + timedelta(seconds=max(0.0, (1.0 - self.level(now, policy)) / policy.rate))


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a gate holds its calls to.

    Attributes:
        concurrency: Calls at once; None for any number.
        bucket: Calls over time; None for any number.
        breaker: When its breaker opens and closes.
    """

    concurrency: int | None = None
    bucket: BucketPolicy | None = None
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)


class GateName(NamedTuple):
    """A gate.

    Attributes:
        provider: Spelling of the provider.
        key: What the provider counts by (an application, a model); empty for the provider as a whole.
    """

    provider: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.provider}/{self.key}" if self.key else self.provider


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate as the database holds it.

    Attributes:
        total_calls: Calls that were admitted.
        rejected_calls: Times that waiting work was passed over because the breaker was open.
        waiting_since: Since when work waits before it; none while it admits all that comes.
    """

    name: GateName
    breaker: Breaker = field(default_factory=Breaker)
    bucket: TokenBucket = field(default_factory=TokenBucket)
    total_calls: int = 0
    rejected_calls: int = 0
    waiting_since: datetime | None = None

    def at_rest(self, now: datetime) -> bool:
        """Whether its state lets everything through, and nothing has to be written of what passes."""
        blocked = self.bucket.blocked_until
        return (
            self.breaker.state is BreakerState.CLOSED
            and self.waiting_since is None
            and (blocked is None or blocked <= now)
        )


class ProviderUsage(NamedTuple):
    """What a tenant's requests to a provider have used, those that ended within one day.

    Attributes:
        day: The day, in UTC.
        currency: Currency of the cost; empty where the provider told none.
        failed_calls: Those without a result, unknown ones among them.
        seconds: From sending to the end, all together.
    """

    tenant: str
    provider: str
    day: date
    currency: str
    calls: int
    failed_calls: int
    seconds: float
    cost: float


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant's calls to a provider are held to.

    Attributes:
        concurrency: Calls at once; None for any number.
        bucket: Calls over time; None for any number.
    """

    concurrency: int | None = None
    bucket: BucketPolicy | None = None


class ProviderLimits:
    """The limits of an installation.

    Args:
        gates: By gate.
        tenants: Limits of a tenant, by tenant and provider, a number for calls at once; the tenant `*` stands for all
            that are not named.
        editor: Provider that redraws parts for the pipelines of this mesh; empty where its devices do.

    Attributes:
        editor: As given.
    """

    def __init__(
        self,
        gates: Mapping[GateName, GateLimits] | None = None,
        tenants: Mapping[str, Mapping[str, int | TenantLimits]] | None = None,
        editor: str = "",
    ) -> None:
        self.editor = editor
        self._gates = dict(gates or {})
        self._tenants = {
            tenant: {name: TenantLimits(one) if isinstance(one, int) else one for name, one in limits.items()}
            for tenant, limits in (tenants or {}).items()
        }
        self._counted = frozenset(name.provider for name, limits in self._gates.items() if limits.concurrency) | {
            provider for limits in self._tenants.values() for provider, one in limits.items() if one.concurrency
        }
        self._rated = frozenset(
            provider for limits in self._tenants.values() for provider, one in limits.items() if one.bucket
        )
        self._bounded = (
            self._counted | self._rated | {name.provider for name, limits in self._gates.items() if limits.bucket}
        )

    def of(self, name: GateName) -> GateLimits:
        """Return the limits of a gate: one of a key that is not named has its provider's breaker, and no others."""
        if name in self._gates:
            return self._gates[name]
        return GateLimits(breaker=self._gates[GateName(name.provider)].breaker) if self._names(name) else _UNLIMITED

    def _names(self, name: GateName) -> bool:
        return GateName(name.provider) in self._gates

    def of_tenant(self, tenant: str, provider: str) -> int | None:
        """How many calls of a tenant a provider executes at once; None for any number."""
        return self._limits_of(tenant, provider).concurrency

    def rate_of_tenant(self, tenant: str, provider: str) -> BucketPolicy | None:
        """How fast a tenant may call a provider; None for any rate."""
        return self._limits_of(tenant, provider).bucket

    def _limits_of(self, tenant: str, provider: str) -> TenantLimits:
        for one in (tenant, "*"):
            limit = self._tenants.get(one, {}).get(provider)
            if limit is not None:
                return limit
        return _ANY

    def rates(self, provider: str) -> bool:
        """Whether tenants' calls to a provider are limited over time, so that their buckets have to be read."""
        return provider in self._rated

    def all_of_tenant(self, tenant: str) -> dict[str, int]:
        """Return how many calls of a tenant each provider executes at once; without those of any number."""
        named = {provider for one in (tenant, "*") for provider in self._tenants.get(one, {})}
        found = {provider: self.of_tenant(tenant, provider) for provider in sorted(named)}
        return {provider: most for provider, most in found.items() if most is not None}

    def counts(self, provider: str) -> bool:
        """Whether calls at once to a provider are limited, so that they have to be counted."""
        return provider in self._counted

    def bounds(self, provider: str) -> bool:
        """Whether calls to a provider are limited in number, at once or over time, in whole or in part."""
        return provider in self._bounded


_UNLIMITED = GateLimits()
_ANY = TenantLimits()
