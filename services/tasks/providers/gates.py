"""What a dispatch round may lease to providers: a lane's tasks pass its gates, and each takes a place from each.

Pure. A lane whose provider counts by a key passes two gates: the key's, with its breaker and limits, and the
provider's, with limits alone: what fails with one application says nothing of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from atelier.tasks.v1 import providers_pb2

from meshkit.catalog import PROVIDERS, ProviderSpec
from services.tasks.domain import parts_of
from services.tasks.providers.domain import BreakerState, Gate, GateName, ProviderLimits, TokenBucket

# Providers that run on this mesh's own devices are never gated.
_OWN_QUEUE = PROVIDERS["LOCAL"].queue
GATED = frozenset(spec.name for spec in PROVIDERS.values() if spec.queue != _OWN_QUEUE)


def key_of(provider: ProviderSpec, config: providers_pb2.ProviderConfig) -> str:
    """Return what a provider counts a task by, an application or a model; empty where the settings name none."""
    if provider.counted_by is None or config.WhichOneof("config") != provider.config:
        return ""
    return str(getattr(getattr(config, provider.config), provider.counted_by))


@lru_cache(maxsize=4096)
def gate_of(lane: str) -> GateName | None:
    """Return the gate of a lane whose provider is gated; its breaker is the lane's."""
    _, provider, key = parts_of(lane)
    return GateName(provider, key) if provider in GATED else None


def called_gate(provider: str, target: str, limits: ProviderLimits) -> GateName | None:
    """Return the gate of who a pipeline of this mesh has called; None for a provider, or where no pipeline calls any.

    Args:
        provider: The provider of the request, as it was written down.
        target: The application or model that was called.
        limits: Say whom pipelines call.
    """
    if provider in GATED or limits.editor not in GATED:
        return None
    return GateName(limits.editor, "" if PROVIDERS[limits.editor].counted_by is None else target)


def gates_of(lanes: Iterable[str]) -> list[GateName]:
    """Return all gates that these lanes pass, in the order in which they are locked."""
    own = {name for lane in lanes if (name := gate_of(lane)) is not None}
    return sorted(own | {GateName(name.provider) for name in own})


def trial_name(task_id: UUID, attempt: int) -> str:
    """Name an attempt among the trials of a breaker."""
    return f"{task_id}/{attempt}"


@dataclass(frozen=True, slots=True)
class GateView:
    """What a round reads of gates.

    Attributes:
        now: The present, by the database's clock.
        lanes: Gated lanes that work waits in.
        gates: Those that are known; a gate without a row has let nothing through yet.
        running: Attempts under way by lane and tenant, where some limit counts them.
        buckets: Those of tenants by tenant and provider, where a rate bounds them; one that is not there is full.
    """

    now: datetime
    lanes: Sequence[str] = ()
    gates: Mapping[GateName, Gate] = field(default_factory=dict)
    running: Mapping[tuple[str, str], int] = field(default_factory=dict)
    buckets: Mapping[tuple[str, str], TokenBucket] = field(default_factory=dict)


@dataclass(slots=True)
class _Places:
    """So many more; None for any number."""

    left: int | None

    @property
    def none(self) -> bool:
        return self.left is not None and self.left <= 0


class Passage:
    """Hands the places of gates out, in one round.

    Args:
        view: The gates as they stand, locked where leases follow.
        limits: What they are held to.
        held: Whether the round holds their rows.

    Attributes:
        lanes: Those of the lanes that something is admitted from.
    """

    def __init__(self, view: GateView, limits: ProviderLimits, *, held: bool = False) -> None:
        self.view = view
        self._held = held
        self._limits = limits
        self._breakers: dict[GateName, _Places] = {}
        self._bounds: dict[GateName, _Places] = {}
        self._tenants: dict[tuple[str, str], _Places] = {}
        self._refused: set[GateName] = set()
        self._refused_tenants: set[tuple[str, str]] = set()
        self._running: dict[GateName, int] = {}
        self._running_of: dict[tuple[str, str], int] = {}
        for (lane, tenant), count in view.running.items():
            name = gate_of(lane)
            if name is None:
                continue
            for gate in {name, GateName(name.provider)}:
                self._running[gate] = self._running.get(gate, 0) + count
            key = (tenant, name.provider)
            self._running_of[key] = self._running_of.get(key, 0) + count
        self.lanes = [lane for lane in view.lanes if self.admits(lane)]

    def admits(self, lane: str, tenant: str | None = None) -> bool:
        """Whether one more task of a lane may be leased, for a tenant or for any; what no gate stands before always."""
        name = gate_of(lane)
        if name is None:
            return True
        if any(places.none for places in self._chain(name)):
            self._refused.add(name)
            return False
        if tenant is None or not self._of_tenant(tenant, name.provider).none:
            return True
        self._refused_tenants.add((tenant, name.provider))
        return False

    def take(self, lane: str, tenant: str) -> bool:
        """Take a task's places.

        Returns:
            Whether they were the last ones of some gate.
        """
        name = gate_of(lane)
        if name is None:
            return False
        last = False
        for places in (*self._chain(name), self._of_tenant(tenant, name.provider)):
            if places.left is not None:
                places.left -= 1
                last = last or places.none
        return last

    @property
    def watched(self) -> bool:
        """Whether the next round has to read gates: some lane's is not at rest, or limits its calls."""
        return not self.view.lanes or any(
            self._limits.bounds(name.provider) or not self._gate(name).at_rest(self.view.now)
            for name in gates_of(self.view.lanes)
        )

    def full_tenants(self) -> int:
        """How many tenants have all calls under way that they may have: they take places among the contenders."""
        known = {*self._running_of, *self.view.buckets}
        return len({tenant for tenant, provider in known if self._of_tenant(tenant, provider).none})

    def after(self, leased: Iterable[tuple[str, str]]) -> list[Gate]:
        """Return the gates that have changed, once it is known what was leased; none of which a row is not held.

        Args:
            leased: Of each task its lane and the name of the call (`trial_name`).
        """
        if not self._held:
            return []
        calls: dict[GateName, list[str]] = {}
        for lane, call in leased:
            name = gate_of(lane)
            if name is None:
                continue
            calls.setdefault(name, []).append(call)
            if name.key:
                calls.setdefault(GateName(name.provider), [])
        free = {name for lane in self.view.lanes if (name := gate_of(lane)) is not None} - self._refused
        changed = []
        for name in sorted({*calls, *free}):
            before = self._gate(name)
            after = self._called(before, calls.get(name, []), self._through(name, calls))
            if name in free:
                after = replace(after, waiting_since=None)
            if after != before:
                changed.append(after)
        return changed

    def buckets_after(self, leased: Iterable[tuple[str, str]]) -> dict[tuple[str, str], TokenBucket]:
        """Return the buckets of tenants that have changed, once it is known what was leased.

        Args:
            leased: Of each task its lane and its tenant.
        """
        calls = Counter((tenant, name.provider) for lane, tenant in leased if (name := gate_of(lane)) is not None)
        changed = {}
        for key, count in calls.items():
            if (policy := self._limits.rate_of_tenant(*key)) is not None:
                changed[key] = self._bucket(key).take(count, self.view.now, policy)
        return changed

    def refused(self) -> list[tuple[GateName, bool]]:
        """Return the gates that passed waiting work over, and whether it was for their breaker."""
        return [(name, self._breaker(name).none) for name in sorted(self._refused)]

    def opens_in(self) -> float | None:
        """Seconds until a gate that refused may admit something by itself; None where that takes another's end."""
        moments = []
        for name in self._refused:
            limits, gate = self._limits.of(name), self._gate(name)
            breaker = gate.breaker.at(self.view.now, limits.breaker)
            if breaker.state is BreakerState.OPEN:
                moments.append(breaker.opens_at(limits.breaker))
                continue
            for one in {name, GateName(name.provider)}:
                bucket, policy = self._gate(one).bucket, self._limits.of(one).bucket
                if bucket.places(self.view.now, policy) == 0:
                    moments.append(bucket.refuses_until(self.view.now, policy))
        for key in self._refused_tenants:
            policy = self._limits.rate_of_tenant(*key)
            if policy is not None and self._bucket(key).places(self.view.now, policy) == 0:
                moments.append(self._bucket(key).refuses_until(self.view.now, policy))
        return min(((moment - self.view.now).total_seconds() for moment in moments), default=None)

    def _called(self, gate: Gate, calls: Sequence[str], through: int) -> Gate:
        limits, now = self._limits.of(gate.name), self.view.now
        breaker = gate.breaker.at(now, limits.breaker) if calls else gate.breaker
        for call in calls:
            breaker = breaker.admit(call)
        return replace(
            gate,
            breaker=breaker,
            bucket=gate.bucket.take(through, now, limits.bucket),
            total_calls=gate.total_calls + len(calls),
        )

    def _through(self, name: GateName, calls: Mapping[GateName, Sequence[str]]) -> int:
        """How many calls pass a gate: its own, and those of its provider's keys."""
        if name.key:
            return len(calls.get(name, ()))
        return sum(len(own) for gate, own in calls.items() if gate.provider == name.provider)

    def _chain(self, name: GateName) -> list[_Places]:
        whole = GateName(name.provider)
        chain = [self._breaker(name), self._bound(name)]
        return chain if name == whole else [*chain, self._bound(whole)]

    def _breaker(self, name: GateName) -> _Places:
        if name not in self._breakers:
            policy = self._limits.of(name).breaker
            self._breakers[name] = _Places(self._gate(name).breaker.at(self.view.now, policy).places(policy))
        return self._breakers[name]

    def _bound(self, name: GateName) -> _Places:
        if name not in self._bounds:
            limits = self._limits.of(name)
            bounds = [self._gate(name).bucket.places(self.view.now, limits.bucket)]
            if limits.concurrency is not None:
                bounds.append(limits.concurrency - self._running.get(name, 0))
            self._bounds[name] = _Places(min((one for one in bounds if one is not None), default=None))
        return self._bounds[name]

    def _of_tenant(self, tenant: str, provider: str) -> _Places:
        key = (tenant, provider)
        if key not in self._tenants:
            most = self._limits.of_tenant(tenant, provider)
            at_once = None if most is None else most - self._running_of.get(key, 0)
            now = self._bucket(key).places(self.view.now, self._limits.rate_of_tenant(tenant, provider))
            self._tenants[key] = _Places(min((one for one in (at_once, now) if one is not None), default=None))
        return self._tenants[key]

    def _bucket(self, key: tuple[str, str]) -> TokenBucket:
        return self.view.buckets.get(key) or TokenBucket()

    def _gate(self, name: GateName) -> Gate:
        return self.view.gates.get(name) or Gate(name)
