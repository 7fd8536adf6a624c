"""Use cases of what stands before providers: look, and close a breaker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from meshkit.access import Caller
from meshkit.catalog import PROVIDERS
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger
from services.tasks.providers.domain import BreakerState, Gate, GateName, ProviderLimits
from services.tasks.providers.gates import GateView, gate_of
from services.tasks.store import TaskStore

_log = get_logger(__name__)


class ProviderDesk:
    """Shows gates to operators, and closes their breakers.

    Args:
        store: The database.
        limits: What gates are held to.
        on_open: Called with the queue of a provider whose gate was opened.
    """

    def __init__(self, store: TaskStore, limits: ProviderLimits, on_open: Callable[[str], None]) -> None:
        self._store = store
        self.limits = limits
        self._on_open = on_open

    async def gates(self, caller: Caller) -> tuple[Sequence[Gate], dict[GateName, int]]:
        """Return the gates as they stand now, with the attempts under way at each; none to who is no operator."""
        if not caller.is_operator:
            return [], {}
        view = await self._store.gates()
        return [self._now(gate, view) for gate in view.gates.values()], _running(view)

    async def reset(self, name: GateName) -> tuple[BreakerState, BreakerState]:
        """Close a breaker.

        Returns:
            Its state before and now.

        Raises:
            MeshError: `NOT_FOUND` where nothing has passed such a gate.
        """
        changed = await self._store.reset_gate(name)
        if changed is None:
            raise MeshError(ErrorKind.NOT_FOUND, f"Nothing has called {name} yet", reason="PROVIDER_GATE_NOT_FOUND")
        before, after = changed
        _log.info("provider_breaker_reset", provider=name.provider, key=name.key, former=before.breaker.state)
        self._on_open(PROVIDERS[name.provider].queue)
        return before.breaker.state, after.breaker.state

    def _now(self, gate: Gate, view: GateView) -> Gate:
        return replace(gate, breaker=gate.breaker.at(view.now, self.limits.of(gate.name).breaker))


def _running(view: GateView) -> dict[GateName, int]:
    running: dict[GateName, int] = {}
    for (lane, _), count in view.running.items():
        name = gate_of(lane)
        for one in set() if name is None else {name, GateName(name.provider)}:
            running[one] = running.get(one, 0) + count
    return running
